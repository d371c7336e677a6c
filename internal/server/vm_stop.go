package server

import (
	"context"
	"fmt"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// graceMax bounds how long a guest may take to power off.
const graceMax = time.Hour

// Stop orders a VM to stop. It answers when the order is recorded; the VM's
// phase, which can be watched, tells when it has stopped, and its cause what
// keeps it from that. A migration that has not committed is
// cancelled for it, one that has is waited for; ctx bounds that wait.
func (v vmService) Stop(ctx context.Context, request *godwitv1.StopVMRequest) (*godwitv1.StopVMResponse, error) {
	grace := time.Duration(request.GetGraceMs()) * time.Millisecond
	if grace < 0 || grace > graceMax {
		return nil, invalidField("stop", "vm "+request.GetName(), "grace_ms", "must be between 0 and 3600000, which is an hour")
	}
	s := v.server
	wanted := request.GetVersion()
	for range store.MaxConflicts {
		entry, err := s.getVM(ctx, "stop", request.GetName())
		if err != nil {
			return nil, err
		}
		if err := checkVersion("stop", "vm", entry, wanted); err != nil {
			return nil, err
		}
		unlocked, err := s.migrations.pass(ctx, "stop", migration.StopVM, entry.Value)
		if err != nil {
			return nil, err
		}
		if unlocked != 0 {
			wanted = following(wanted, unlocked)
			continue
		}
		if phase := entry.Value.Phase; phase == fleet.VMStopped || phase == fleet.VMFailed {
			return &godwitv1.StopVMResponse{Vm: wire.EncodeVM(entry.Value, entry.Version)}, nil
		}
		response, err := s.orderStop(ctx, entry, grace)
		if fleet.CodeOf(err) == fleet.Conflict {
			continue
		}
		return response, err
	}
	return nil, tooManyConflicts("stop", "vm "+request.GetName())
}

// orderStop records the order. Asked again, with another grace time, it is a
// new order to the host.
func (s *Server) orderStop(ctx context.Context, entry store.Entry[fleet.VM], grace time.Duration) (*godwitv1.StopVMResponse, error) {
	before, err := s.tables.stops.Get(ctx, entry.Name)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return nil, err
	}
	order := stopOrder{Grace: grace, Sequence: max(sequenceFirstStop, before.Value.Sequence+1)}
	vm := entry.Value
	vm.Phase, vm.Cause = fleet.VMStopping, ""
	if !s.hub.connected(vm.Owner.Host) {
		vm.Cause = fmt.Sprintf("host %s had no session when it was to be stopped; it is told when it returns", vm.Owner.Host)
	}
	revision, err := s.tables.store.Commit(ctx, store.If(s.tables.vms.At(entry.Name, entry.Version)),
		s.tables.vms.Put(entry.Name, vm), s.tables.stops.Put(entry.Name, order))
	if err != nil {
		return nil, err
	}
	return &godwitv1.StopVMResponse{Vm: wire.EncodeVM(vm, revision)}, nil
}
