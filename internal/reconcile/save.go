package reconcile

import (
	"context"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// save stores the migration and, in the same transaction, all that its step
// changed elsewhere: the VM's owner at the commit, or when it is taken back, and
// its lock and the losing host's reservation at the end. Every save is
// conditioned on the version of the migration's record, so of a commit and an
// abort exactly one happens.
func (r *Reconciler) save(ctx context.Context, one *run, before, after migration.Migration) error {
	id := string(after.ID)
	conditions := store.If(r.Tables.Migrations.At(id, one.entry.Version))
	// A disk that fills up meanwhile must not hold a VM between two hosts.
	ops := []store.Op{r.Tables.Migrations.Put(id, after).Ending()}
	vm, vmChanged, err := r.changedVM(ctx, one, before, after)
	if err != nil {
		return err
	}
	if vmChanged {
		conditions = append(conditions, r.Tables.VMs.At(vm.Name, vm.Version))
		ops = append(ops, r.Tables.VMs.Put(vm.Name, vm.Value))
	}
	if before.Locked() && !after.Locked() {
		if r.Leases != nil {
			ops = append(ops, r.Leases.MigrationEnded(vm.Value, after)...)
		}
		for _, loser := range losers(after) {
			condition, op, err := r.freeClaim(ctx, loser, after.UID)
			if err != nil {
				return err
			}
			conditions, ops = append(conditions, condition), append(ops, op)
		}
	}
	revision, err := r.Tables.Store.Commit(ctx, conditions, ops...)
	if err != nil {
		return err
	}
	one.entry.Value, one.entry.Version = after, revision
	if vmChanged {
		one.vm = vm
		one.vm.Version = revision
	}
	return nil
}

// changedVM gives the VM's record as it must be after the step. It is read
// when the source stops, so that the commit need not.
func (r *Reconciler) changedVM(ctx context.Context, one *run, before, after migration.Migration) (store.Entry[fleet.VM], bool, error) {
	moves := after.Owner() != before.Owner()
	unlocks := before.Locked() && !after.Locked()
	if !moves && !unlocks && after.State != migration.Switching {
		return store.Entry[fleet.VM]{}, false, nil
	}
	if one.vm.Version == 0 || unlocks {
		entry, err := r.Tables.VMs.Get(ctx, string(after.VM))
		if err != nil {
			return entry, false, err
		}
		one.vm = entry
	}
	vm := one.vm
	if vm.Value.Migration != after.ID {
		return vm, false, &fleet.Error{
			Code: fleet.Internal, Op: "save migration " + string(after.ID), Subject: "vm " + string(after.VM),
			Cause: "the VM's lock is not the migration's",
		}
	}
	if moves {
		vm.Value.Owner, vm.Value.QEMU = after.Owner(), after.OwnerQEMU()
		vm.Value.Local = localAfter(vm.Value, after)
	}
	if unlocks {
		vm.Value.Migration = ""
		if vm.Value.Local.Host != "" {
			vm.Value.Local.Leaves(after.Source, after.Target)
		}
	}
	if unlocks && after.Down() {
		vm.Value.Phase, vm.Value.Cause = fleet.VMFailed, after.Cause
		// By a new epoch an instance that a lost host still has is stale.
		vm.Value.Owner, vm.Value.QEMU = fleet.Owner{Epoch: after.Owner().Epoch + 1}, fleet.InstanceQEMU{}
	}
	return vm, moves || unlocks, nil
}

// localAfter gives which host has the VM's local disks, when its owner changes: a
// source that gets it back has them as it had them.
func localAfter(vm fleet.VM, after migration.Migration) fleet.LocalData {
	local := vm.Local
	if len(vm.Spec.LocalDisks()) == 0 {
		return local
	}
	local.Host, local.Epoch = after.Owner().Host, after.Owner().Epoch
	if after.TakenBack {
		local.Epoch = after.Epoch
	}
	return local
}

// losers are the hosts that the VM is not on, at the end of its migration.
func losers(m migration.Migration) []fleet.HostName {
	switch {
	case m.Down():
		return []fleet.HostName{m.Source, m.Target}
	case m.Owner().Host == m.Target:
		return []fleet.HostName{m.Source}
	}
	return []fleet.HostName{m.Target}
}

// freeClaim gives back what is reserved for an instance on a host.
func (r *Reconciler) freeClaim(ctx context.Context, loser fleet.HostName, uid fleet.InstanceUID) (store.Condition, store.Op, error) {
	ledger, err := r.Tables.Ledgers.Get(ctx, string(loser))
	if err != nil {
		return store.Condition{}, store.Op{}, err
	}
	delete(ledger.Value.Claims, uid)
	return r.Tables.Ledgers.At(ledger.Name, ledger.Version), r.Tables.Ledgers.Put(ledger.Name, ledger.Value), nil
}
