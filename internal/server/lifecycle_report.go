package server

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// States of an instance, as in InstanceReport.
const (
	instanceStarting = "starting" // QEMU is being started, and not for a migration
	instanceRunning  = "running"
	instancePaused   = "paused"
	instanceIncoming = "incoming"
	instanceExited   = "exited"
	instanceAbsent   = "absent"
)

// guestShutdown is the cause of an exit that the guest itself asked for, as
// QEMU names it (ShutdownCause in qapi/run-state.json).
const guestShutdown = "guest-shutdown"

// reportWithin bounds what one report may cost.
const reportWithin = 15 * time.Second

// report takes what a host says of an instance.
func (l *lifecycle) report(ctx context.Context, host fleet.HostName, report *godwitv1.Report) error {
	instance := report.GetInstance()
	if instance == nil {
		return reconcile.UnknownReport(host, report)
	}
	l.taken(host, instance, l.observe(ctx, host, instance, report.GetSequence()))
	return nil
}

// taken tells whether a report is dealt with; err is why it was not recorded. If
// it may be later, the host's session is ended: it does not repeat an answer in
// this one, and says the states of its instances when it opens the next. It
// waits before it does that, ever longer while its sessions are short.
func (l *lifecycle) taken(host fleet.HostName, said *godwitv1.InstanceReport, err error) bool {
	switch {
	case err == nil:
		return true
	case !store.Passes(err):
		l.log.Warn("a report can't be taken", "host", host, "vm", said.GetVm(), "error", err)
		return true
	}
	l.hub.end(host, &fleet.Error{
		Code: fleet.Unavailable, Op: "keep session", Subject: "host " + string(host),
		Cause: "what it says of vm " + said.GetVm() + " could not be recorded",
		Hint:  "it says it again in its next session; if that goes on, look after the store", Err: err,
	})
	return false
}

// observe moves the VM's record on by what a host says. answers is the
// sequence of the command it answers, or 0. After an error the record is as it
// was, or the store does not tell.
func (l *lifecycle) observe(ctx context.Context, host fleet.HostName, said *godwitv1.InstanceReport, answers uint64) error {
	ctx, cancel := context.WithTimeout(ctx, reportWithin)
	defer cancel()
	for range store.MaxConflicts {
		entry, err := l.tables.vms.Get(ctx, said.GetVm())
		switch {
		case fleet.CodeOf(err) == fleet.NotFound && said.GetState() == instanceExited:
			l.leave(host, said)
			return nil
		case fleet.CodeOf(err) == fleet.NotFound:
			l.log.Warn("a host has an instance of a VM that is not known; it is left alone", "host", host, "vm", said.GetVm(), "epoch", said.GetEpoch())
			return nil
		case err == nil && entry.Value.Owner != fleet.Owner{Host: host, Epoch: fleet.Epoch(said.GetEpoch())}:
			return l.notOwner(ctx, host, entry.Value, said)
		case err == nil:
			err = l.move(ctx, host, entry, said, answers)
		}
		if fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return tooManyConflicts("take a report", "vm "+said.GetVm())
}

// move changes the record of a VM by what its owner says.
func (l *lifecycle) move(ctx context.Context, host fleet.HostName, entry store.Entry[fleet.VM], said *godwitv1.InstanceReport, answers uint64) error {
	vm := entry.Value
	if said.GetUid() != "" && said.GetUid() != string(vm.UID) {
		l.log.Warn("a host has an instance of an older VM of that name; it is left alone", "host", host, "vm", vm.Name, "uid", said.GetUid())
		return nil
	}
	switch said.GetState() {
	case instanceRunning, instancePaused:
		if !goOn(&vm, said, answers) {
			return nil
		}
		return l.commit(ctx, store.If(l.tables.vms.At(entry.Name, entry.Version)), l.tables.vms.Put(entry.Name, vm))
	case instanceExited, instanceAbsent:
	default:
		return nil
	}
	if vm.Migration != "" {
		l.hold(host, said)
		return nil
	}
	if vm.Phase == fleet.VMStarting && answers != sequenceStart && said.GetCause() == "" {
		return nil // what a host had when it was not told yet, or was at it
	}
	err := l.end(ctx, host, entry, said)
	if err == nil && said.GetState() == instanceExited && answers == 0 { // who was told to end it has removed it
		l.leave(host, said)
	}
	return err
}

// goOn changes a VM by what its owner says of the instance, which has not ended;
// false if that is known already.
func goOn(vm *fleet.VM, said *godwitv1.InstanceReport, answers uint64) (news bool) {
	if qemu := wire.QEMUOf(said); qemu.Version != "" && !qemu.Equal(vm.QEMU) {
		vm.QEMU, news = qemu, true
	}
	if vm.Phase == fleet.VMRunning && vm.Cause == unknownTo(vm.Owner.Host, vm.Name) {
		vm.Cause, news = "", true
	}
	switch {
	case said.GetState() != instanceRunning:
	case vm.Phase == fleet.VMStarting:
		vm.Phase, vm.Cause, news = fleet.VMRunning, "", true
	case vm.Phase == fleet.VMStopping && answers >= sequenceFirstStop && said.GetCause() != "" && said.GetCause() != vm.Cause:
		vm.Cause, news = wire.Bounded(said.GetCause()), true // why it could not be stopped; another Stop tries again
	}
	return news
}

// end records that the instance is gone, and gives its capacity back in the
// same commit. By the new epoch it is stale, should it run after all.
func (l *lifecycle) end(ctx context.Context, host fleet.HostName, entry store.Entry[fleet.VM], said *godwitv1.InstanceReport) error {
	vm := entry.Value
	vm.Phase, vm.Cause = afterEnd(vm.Phase, host, said)
	vm.Owner, vm.QEMU = fleet.Owner{Epoch: vm.Owner.Epoch + 1}, fleet.InstanceQEMU{}
	ledger, err := l.tables.ledgers.Get(ctx, string(host))
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return err
	}
	conditions := store.If(l.tables.vms.At(entry.Name, entry.Version))
	ops := []store.Op{l.tables.vms.Put(entry.Name, vm), l.tables.stops.Delete(entry.Name)}
	if _, claimed := ledger.Value.Claims[vm.UID]; claimed {
		delete(ledger.Value.Claims, vm.UID)
		conditions = append(conditions, l.tables.ledgers.At(ledger.Name, ledger.Version))
		ops = append(ops, l.tables.ledgers.Put(ledger.Name, ledger.Value))
	}
	if err = l.commit(ctx, conditions, ops...); err != nil {
		return err
	}
	l.log.Info("instance ended", "vm", vm.Name, "host", host, "phase", vm.Phase, "cause", vm.Cause)
	return nil
}

// afterEnd says what the end of an instance means for its VM.
func afterEnd(phase fleet.VMPhase, host fleet.HostName, said *godwitv1.InstanceReport) (fleet.VMPhase, string) {
	cause := said.GetCause()
	switch {
	case phase == fleet.VMStopping:
		return fleet.VMStopped, ""
	case said.GetState() == instanceAbsent && cause == "":
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
func (l *lifecycle) hold(host fleet.HostName, said *godwitv1.InstanceReport) {
	name := fleet.VMName(said.GetVm())
	l.mu.Lock()
	if older := l.held[name]; older == nil || older.report.GetEpoch() <= said.GetEpoch() {
		l.held[name] = &heldReport{host: host, report: said}
	}
	l.mu.Unlock()
	l.changed(name)
}

// settleHeld takes up a report that is held. It counts only if the VM stayed
// where the report came from. An error is one that passes, and the report is
// still held then.
func (l *lifecycle) settleHeld(ctx context.Context, name fleet.VMName) error {
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
		l.log.Warn("the end of an instance can't be taken", "host", held.host, "vm", name, "error", err)
	}
	l.mu.Lock()
	if l.held[name] == held { // and was not held anew: a migration may have locked the VM
		delete(l.held, name)
	}
	l.mu.Unlock()
	return nil
}

// notOwner deals with an instance that is not the owner's, by the VM's record as
// it was just read. One that has ended is removed; one that may run only if the
// records prove it stale: the owner is another host, or there is none, its epoch is
// not older, and no migration has anything left to do there.
func (l *lifecycle) notOwner(ctx context.Context, host fleet.HostName, vm fleet.VM, said *godwitv1.InstanceReport) error {
	switch said.GetState() {
	case instanceExited:
		l.leave(host, said)
		return nil
	case instanceAbsent:
		return nil
	}
	epoch := fleet.Epoch(said.GetEpoch())
	sameVM := said.GetUid() == string(vm.UID)
	newer := vm.Owner.Epoch > epoch || vm.Owner.Epoch == epoch && vm.Owner.Host != host
	held := vm.Migration != "" && vm.Owner.Epoch == epoch // what is older than the owner's, a later move does not concern
	stale := sameVM && newer && !held
	if stale {
		moving, err := l.moving(ctx, vm.Name, host)
		if err != nil {
			return err
		}
		stale = !moving
	}
	if !stale {
		l.log.Warn("a host has an instance that is not the owner's and not proven stale; it is left alone",
			"host", host, "vm", vm.Name, "epoch", epoch, "owner", vm.Owner.Host, "ownerEpoch", vm.Owner.Epoch)
		return nil
	}
	l.log.Info("a stale instance is removed", "host", host, "vm", vm.Name, "epoch", epoch, "ownerEpoch", vm.Owner.Epoch)
	l.forget(host, &godwitv1.ForgetInstance{Vm: said.GetVm(), Epoch: said.GetEpoch(), Uid: said.GetUid()})
	return nil
}
