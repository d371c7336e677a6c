package server

import (
	"context"
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
		ordered, err := s.lifecycle.Stop(ctx, entry, grace)
		if fleet.CodeOf(err) == fleet.Conflict {
			continue
		}
		if err != nil {
			return nil, err
		}
		return &godwitv1.StopVMResponse{Vm: wire.EncodeVM(ordered.Value, ordered.Version)}, nil
	}
	return nil, tooManyConflicts("stop", "vm "+request.GetName())
}
