package lifecycle

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
	Starting = string(fleet.InstanceStarting)
	Running  = string(fleet.InstanceRunning)
	Paused   = string(fleet.InstancePaused)
	Incoming = string(fleet.InstanceIncoming)
	Exited   = string(fleet.InstanceExited)
	Absent   = string(fleet.InstanceAbsent)
)

// guestShutdown is the cause of an exit that the guest itself asked for, as
// QEMU names it (ShutdownCause in qapi/run-state.json).
const guestShutdown = "guest-shutdown"

// reportWithin bounds what one report may cost.
const reportWithin = 15 * time.Second

// Report takes what a host says of an instance or its hardware. The error is that it
// says nothing of either.
func (l *Lifecycle) Report(ctx context.Context, host fleet.HostName, report *godwitv1.Report) error {
	if report.GetHardwareChanged() != nil {
		l.taken(host, &godwitv1.InstanceReport{Vm: report.GetSubject()}, l.hardwareChanged(ctx, host, report))
		return nil
	}
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
func (l *Lifecycle) taken(host fleet.HostName, said *godwitv1.InstanceReport, err error) bool {
	switch {
	case err == nil:
		return true
	case !store.Passes(err):
		l.Log.Warn("a report can't be taken", "host", host, "vm", said.GetVm(), "error", err)
		return true
	}
	l.Hosts.End(host, &fleet.Error{
		Code: fleet.Unavailable, Op: "keep session", Subject: "host " + string(host),
		Cause: "what it says of vm " + said.GetVm() + " could not be recorded",
		Hint:  "it says it again in its next session; if that goes on, look after the store", Err: err,
	})
	return false
}

// observe moves the VM's record on by what a host says. answers is the
// sequence of the command it answers, or 0. After an error the record is as it
// was, or the store does not tell.
func (l *Lifecycle) observe(ctx context.Context, host fleet.HostName, said *godwitv1.InstanceReport, answers uint64) error {
	ctx, cancel := l.Runtime.Within(ctx, reportWithin)
	defer cancel()
	for range store.MaxConflicts {
		entry, err := l.Tables.VMs.Get(ctx, said.GetVm())
		switch {
		case fleet.CodeOf(err) == fleet.NotFound && said.GetState() == Exited:
			l.leave(host, said)
			return nil
		case fleet.CodeOf(err) == fleet.NotFound:
			l.Log.Warn("a host has an instance of a VM that is not known; it is left alone", "host", host, "vm", said.GetVm(), "epoch", said.GetEpoch())
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
	return tooManyConflicts("take a report", fleet.VMName(said.GetVm()))
}

// move changes the record of a VM by what its owner says.
func (l *Lifecycle) move(ctx context.Context, host fleet.HostName, entry store.Entry[fleet.VM], said *godwitv1.InstanceReport, answers uint64) error {
	vm := entry.Value
	if said.GetUid() != "" && said.GetUid() != string(vm.UID) {
		l.Log.Warn("a host has an instance of an older VM of that name; it is left alone", "host", host, "vm", vm.Name, "uid", said.GetUid())
		return nil
	}
	switch said.GetState() {
	case Running, Paused:
		if !goOn(&vm, said, answers) {
			return nil
		}
		return l.commit(ctx, store.If(l.Tables.VMs.At(entry.Name, entry.Version)), l.Tables.VMs.Put(entry.Name, vm))
	case Exited, Absent:
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
	if err == nil && said.GetState() == Exited && answers == 0 { // who was told to end it has removed it
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
	case said.GetState() != Running:
	case vm.Phase == fleet.VMStarting:
		vm.Phase, vm.Cause, news = fleet.VMRunning, "", true
		if vm.Local.Host != "" { // from now on it has data that must not be missing
			vm.Local.Epoch = max(vm.Local.Epoch, vm.Owner.Epoch)
		}
	case vm.Phase == fleet.VMStopping && answers >= sequenceFirstStop && said.GetCause() != "" && said.GetCause() != vm.Cause:
		vm.Cause, news = wire.Bounded(said.GetCause()), true // why it could not be stopped; another Stop tries again
	}
	return news
}

// notOwner deals with an instance that is not the owner's, by the VM's record as
// it was just read. One that has ended is removed; one that may run only if the
// records prove it stale: the owner is another host, or there is none, its epoch is
// not older, and no migration has anything left to do there.
func (l *Lifecycle) notOwner(ctx context.Context, host fleet.HostName, vm fleet.VM, said *godwitv1.InstanceReport) error {
	switch said.GetState() {
	case Exited:
		l.leave(host, said)
		return nil
	case Absent:
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
		l.Log.Warn("a host has an instance that is not the owner's and not proven stale; it is left alone",
			"host", host, "vm", vm.Name, "epoch", epoch, "owner", vm.Owner.Host, "ownerEpoch", vm.Owner.Epoch)
		return nil
	}
	l.Log.Info("a stale instance is removed", "host", host, "vm", vm.Name, "epoch", epoch, "ownerEpoch", vm.Owner.Epoch)
	l.forget(host, &godwitv1.ForgetInstance{Vm: said.GetVm(), Epoch: said.GetEpoch(), Uid: said.GetUid()})
	return nil
}
