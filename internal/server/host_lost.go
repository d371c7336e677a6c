package server

import (
	"context"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// declaredLost is why what was on a lost host has ended.
const declaredLost = "declared lost by the operator"

// DeclareLost takes the operator's word that a host is off for good. It goes on
// in steps that can be repeated. First the host is cordoned: from then on it gets
// no VM but by the commit of a migration, so the migrations come next.
func (h hostService) DeclareLost(ctx context.Context, request *godwitv1.DeclareHostLostRequest) (*godwitv1.DeclareHostLostResponse, error) {
	s, name := h.server, fleet.HostName(request.GetName())
	if !request.GetIsOff() {
		return nil, invalidField("declare lost", "host "+request.GetName(), "is_off", "must say that the host is off for good")
	}
	cordon := &godwitv1.CordonHostRequest{Name: request.GetName(), Cordoned: true, Version: request.GetVersion()}
	entry, err := s.cordon(ctx, "declare lost", cordon, func() error { return s.mustBeDown(name) })
	if err != nil {
		return nil, err
	}
	s.log.Warn("host declared lost", "host", name)
	moves, err := s.migrations.hostLost(ctx, name)
	if err != nil {
		return nil, err
	}
	vms, err := s.giveUpVMs(ctx, name)
	if err != nil {
		return nil, err
	}
	s.askAgain(name)
	response := &godwitv1.DeclareHostLostResponse{}
	for _, move := range moves {
		response.Migrations = append(response.Migrations, migrationMessage(move))
	}
	for _, vm := range vms {
		response.Vms = append(response.Vms, wire.EncodeVM(vm.Value, vm.Version))
	}
	response.Host, err = h.show(ctx, entry)
	return response, err
}

// mustBeDown refuses to give up a host that is up, or may be.
func (s *Server) mustBeDown(host fleet.HostName) error {
	if !s.hub.connected(host) {
		return s.mayBeUp(host, "declare lost", "host "+string(host))
	}
	return &fleet.Error{
		Code: fleet.Conflict, Op: "declare lost", Subject: "host " + string(host), Cause: "it is not off: its agent has a session",
		Hint: fmt.Sprintf("to empty a host that is up: godwit host cordon %s, then migrate its VMs", host),
	}
}

// hostLost tells every migration from or to a host that it is off for good, and
// gives those that were under way.
func (r *reconciler) hostLost(ctx context.Context, host fleet.HostName) ([]store.Entry[migration.Migration], error) {
	entries, _, err := r.tables.migrations.All(ctx)
	if err != nil {
		return nil, err
	}
	var under []store.Entry[migration.Migration]
	for _, entry := range entries {
		if entry.Value.Over() || !entry.Value.Involves(host) {
			continue
		}
		event := migration.Event{Kind: migration.HostLost, From: string(host), Detail: declaredLost}
		if _, _, err := r.Advance(ctx, entry.Value.ID, event); err != nil {
			return nil, err
		}
		now, err := r.newest(ctx, "declare lost", entry.Name)
		if err != nil {
			return nil, err
		}
		under = append(under, now)
	}
	return under, nil
}

// giveUpVMs ends the VMs that a lost host has by the records. Those that a
// migration holds are the migration's: it knows that the host is lost.
func (s *Server) giveUpVMs(ctx context.Context, host fleet.HostName) (ended []store.Entry[fleet.VM], err error) {
	entries, _, err := s.tables.vms.All(ctx)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if entry.Value.Owner.Host != host {
			continue
		}
		if err := s.lifecycle.GiveUp(ctx, host, entry.Value.Name, fmt.Sprintf("host %s was %s", host, declaredLost)); err != nil {
			return nil, err
		}
		now, err := s.tables.vms.Get(ctx, entry.Name)
		if fleet.CodeOf(err) == fleet.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		ended = append(ended, now)
	}
	return ended, nil
}

// hearAgain asks lost hosts again that are back before a migration was over which
// goes on without them: until then it was not known which of their instances are
// stale.
func (s *Server) hearAgain(over migration.Migration) {
	if over.SourceLost {
		s.askAgain(over.Source)
	}
	if over.TargetLost {
		s.askAgain(over.Target)
	}
}

// askAgain ends the session that a lost host has nevertheless. It says what it has
// when it opens the next one.
func (s *Server) askAgain(host fleet.HostName) {
	s.hub.End(host, &fleet.Error{
		Code: fleet.Unavailable, Op: "keep session", Subject: "host " + string(host),
		Cause: "it was declared lost, and what it has is stale now", Hint: "it says in its next session what it has",
	})
}
