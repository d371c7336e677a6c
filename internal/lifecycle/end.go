package lifecycle

import (
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// heldReport is the end of an instance that a host tells of.
type heldReport struct {
	host   fleet.HostName
	report *godwitv1.InstanceReport
}

// end records that the instance is gone, and gives its capacity back in the
// same commit. By the new epoch it is stale, should it run after all.
func (l *Lifecycle) end(ctx context.Context, host fleet.HostName, entry store.Entry[fleet.VM], said *godwitv1.InstanceReport) error {
	vm := entry.Value
	var released []store.Op
	if vm.Changing() {
		vm, released = l.settled(vm, *vm.Change.Ended(""))
	}
	if l.Volumes != nil {
		released = append(released, l.Volumes.Ended(vm)...)
	}
	vm.Phase, vm.Cause = afterEnd(vm.Phase, host, said)
	vm.Owner, vm.QEMU = fleet.Owner{Epoch: vm.Owner.Epoch + 1}, fleet.InstanceQEMU{}
	ledger, err := l.Tables.Ledgers.Get(ctx, string(host))
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return err
	}
	conditions := store.If(l.Tables.VMs.At(entry.Name, entry.Version))
	ops := append(released, l.Tables.VMs.Put(entry.Name, vm), l.Tables.Stops.Delete(entry.Name))
	if _, claimed := ledger.Value.Claims[vm.UID]; claimed {
		delete(ledger.Value.Claims, vm.UID)
		conditions = append(conditions, l.Tables.Ledgers.At(ledger.Name, ledger.Version))
		ops = append(ops, l.Tables.Ledgers.Put(ledger.Name, ledger.Value))
	}
	if err = l.commit(ctx, conditions, ops...); err != nil {
		return err
	}
	l.Log.Info("instance ended", "vm", vm.Name, "host", host, "phase", vm.Phase, "cause", vm.Cause)
	return nil
}

// afterEnd says what the end of an instance means for its VM.
func afterEnd(phase fleet.VMPhase, host fleet.HostName, said *godwitv1.InstanceReport) (fleet.VMPhase, string) {
	cause := said.GetCause()
	switch {
	case phase == fleet.VMStopping:
		return fleet.VMStopped, ""
	case said.GetState() == Absent && cause == "":
		return fleet.VMFailed, "host " + string(host) + " has no instance of it any more"
	case cause == "" && phase == fleet.VMStarting:
		return fleet.VMFailed, "its instance ended on host " + string(host) + " before it ran"
	case cause == "", cause == guestShutdown:
		return fleet.VMStopped, "the guest powered itself off"
	}
	return fleet.VMFailed, cause
}

// hold keeps the end of an instance until the VM's record has it. The lock for
// which it may have to wait may be gone already, so the VM is looked at.
func (l *Lifecycle) hold(host fleet.HostName, said *godwitv1.InstanceReport) {
	name := fleet.VMName(said.GetVm())
	l.mu.Lock()
	if older := l.held[name]; older == nil || older.report.GetEpoch() <= said.GetEpoch() {
		l.held[name] = &heldReport{host: host, report: said}
	}
	l.mu.Unlock()
	l.Changed(name)
}

// settleHeld takes up a report that is held. It counts only if the VM stayed
// where the report came from. An error is one that passes, and the report is
// still held then.
func (l *Lifecycle) settleHeld(ctx context.Context, name fleet.VMName) error {
	l.mu.Lock()
	held := l.held[name]
	l.mu.Unlock()
	if held == nil {
		return nil
	}
	err := l.observe(ctx, held.host, held.report, 0)
	switch {
	case store.Passes(err):
		return err
	case err != nil:
		l.Log.Warn("the end of an instance can't be taken", "host", held.host, "vm", name, "error", err)
	}
	l.mu.Lock()
	if l.held[name] == held { // and was not held anew: a migration may have locked the VM
		delete(l.held, name)
	}
	l.mu.Unlock()
	return nil
}

// GiveUp ends a VM for a cause, if the host has it and no migration holds it.
func (l *Lifecycle) GiveUp(ctx context.Context, host fleet.HostName, name fleet.VMName, cause string) error {
	for range store.MaxConflicts {
		entry, err := l.Tables.VMs.Get(ctx, string(name))
		switch {
		case fleet.CodeOf(err) == fleet.NotFound:
			return nil
		case err != nil:
			return err
		case entry.Value.Owner.Host != host || entry.Value.Migration != "":
			return nil
		}
		err = l.end(ctx, host, entry, &godwitv1.InstanceReport{State: Exited, Cause: cause})
		if fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return tooManyConflicts("give up", name)
}

func tooManyConflicts(op string, name fleet.VMName) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: op, Subject: "vm " + string(name),
		Cause: "its records are being changed by somebody else", Hint: "try again",
	}
}
