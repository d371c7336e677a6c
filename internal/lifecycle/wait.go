package lifecycle

import (
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// StartWaits records why a VM is not started yet or, if that does not pass, that it
// won't be.
func (l *Lifecycle) StartWaits(ctx context.Context, is fleet.VM, cause error, passes bool) error {
	for range store.MaxConflicts {
		entry, err := l.Tables.VMs.Get(ctx, string(is.Name))
		vm := entry.Value
		switch {
		case fleet.CodeOf(err) == fleet.NotFound:
			return nil
		case err != nil:
			return err
		case vm.UID != is.UID || vm.Owner != is.Owner || vm.Phase != fleet.VMStarting || vm.Cause == cause.Error():
			return nil
		case passes:
			vm.Cause = cause.Error()
			err = l.commit(ctx, store.If(l.Tables.VMs.At(entry.Name, entry.Version)), l.Tables.VMs.Put(entry.Name, vm))
		default:
			err = l.end(ctx, vm.Owner.Host, entry, &godwitv1.InstanceReport{Vm: entry.Name, State: Exited, Cause: cause.Error()})
		}
		if fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return tooManyConflicts("start", is.Name)
}
