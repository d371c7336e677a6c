package server

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

const (
	// measureLate is how much longer than its span the measuring of a guest may take.
	measureLate = 20 * time.Second
	// linkWithin is for the measuring of a link, with the way to the host that does it.
	linkWithin = 10 * time.Second
)

// MeasureGuest has the host of a VM look at how its guest changes its memory, for a span
// of 1 to 8 s. The host may answer with what it has measured not long before. Conflict
// if the VM does not run or a migration has it; Unsupported if its host can't measure.
func (s *Server) MeasureGuest(ctx context.Context, name string, span time.Duration) (*godwitv1.MeasureGuestResponse, error) {
	entry, err := s.getVM(ctx, "measure", name)
	if err != nil {
		return nil, err
	}
	vm := entry.Value
	switch {
	case vm.Owner.Host == "":
		return nil, notRunning("measure", vm)
	case vm.Migration != "":
		return nil, &fleet.Error{Code: fleet.Conflict, Op: "measure", Subject: "vm " + name, Cause: "migration " + string(vm.Migration) + " has it"}
	}
	return s.measureGuest(ctx, vm, span, time.Time{})
}

// measureGuest is the same for a VM that runs, with a measurement that began after
// another, whose begin is given by the clock of the VM's host.
func (s *Server) measureGuest(ctx context.Context, vm fleet.VM, span time.Duration, after time.Time) (*godwitv1.MeasureGuestResponse, error) {
	host, err := s.agentOf(ctx, vm.Owner.Host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, span+measureLate)
	defer cancel()
	return host.Measure.MeasureGuest(ctx, &godwitv1.MeasureGuestRequest{
		Vm: string(vm.Name), Epoch: uint64(vm.Owner.Epoch), Uid: string(vm.UID), SpanMs: span.Milliseconds(), After: timestamp(after),
	})
}

// MeasureLink has one host send to another as fast as it goes, for at most 200 ms and
// 64 MiB. Unavailable if one can't be reached, Unsupported if its agent can't measure.
func (s *Server) MeasureLink(ctx context.Context, from, to fleet.HostName) (*godwitv1.MeasureLinkResponse, error) {
	source, err := s.agentOf(ctx, from)
	if err != nil {
		return nil, err
	}
	target, err := s.tables.hosts.Get(ctx, string(to))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, linkWithin)
	defer cancel()
	return source.Measure.MeasureLink(ctx, &godwitv1.MeasureLinkRequest{
		Host: string(to), Address: target.Value.Address.String(), PeerPort: uint32(target.Value.PeerPort),
	})
}
