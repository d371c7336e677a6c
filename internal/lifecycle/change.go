package lifecycle

import (
	"cmp"
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// A change of a running VM's hardware is ordered in its record. The owner's host
// carries it out, is told until it has answered, and answers once: the record's spec
// follows in the commit that ends the change. While it is pending there is no
// migration, so what a target is made from is what the source has. If the instance
// ends first, the change is one of the record only, and done.

// Hardware knows what the cards of VMs hold besides the VM's record.
type Hardware interface {
	// Settled gives what is to be stored with the end of a change, by the VM's record
	// before that: an added card that is not there and a removed one hold nothing.
	Settled(fleet.VM, fleet.Change) []store.Op
}

// sequenceChange is that of a VM's change 0; see sequenceStart.
const sequenceChange = 1 << 40

// wants tells whether a VM's host has to be told something.
func wants(vm fleet.VM) bool {
	switch vm.Phase {
	case fleet.VMStarting, fleet.VMStopping:
		return true
	case fleet.VMRunning:
		return vm.Changing() && vm.Migration == ""
	}
	return false
}

// changeCommand completes the command that changes a VM's hardware.
func (l *Lifecycle) changeCommand(ctx context.Context, vm fleet.VM, command *godwitv1.Command) error {
	change := *vm.Change
	order := &godwitv1.ChangeHardware{Vm: string(vm.Name), Remove: change.Remove}
	if change.Disk != nil {
		order.Disk = wire.EncodeDisk(*change.Disk)
	}
	if change.Port != nil {
		order.Port = wire.EncodePort(*change.Port)
		networks, err := reconcile.PortNetworks(ctx, l.Tables.Networks, fleet.VMSpec{Ports: []fleet.Port{*change.Port}})
		if err != nil {
			return err
		}
		order.Network = networks[0]
	}
	command.Sequence = sequenceChange + change.Sequence
	command.Op = &godwitv1.Command_ChangeHardware{ChangeHardware: order}
	return nil
}

// noteTold records that a host is about to be told of a change: from then on the host may
// have carried it out.
func (l *Lifecycle) noteTold(ctx context.Context, entry store.Entry[fleet.VM]) error {
	change := *entry.Value.Change
	change.Untold = false
	entry.Value.Change = &change
	return l.commit(ctx, store.If(l.Tables.VMs.At(entry.Name, entry.Version)), l.Tables.VMs.Put(entry.Name, entry.Value))
}

// hardwareChanged takes what the owner's host says of a change, or of a card of which the
// guest has let go by itself.
func (l *Lifecycle) hardwareChanged(ctx context.Context, host fleet.HostName, report *godwitv1.Report) error {
	said := report.GetHardwareChanged()
	return l.settle(ctx, fleet.VMName(report.GetSubject()), func(vm fleet.VM) (fleet.Change, bool) {
		switch {
		case vm.Owner != fleet.Owner{Host: host, Epoch: fleet.Epoch(report.GetEpoch())}:
			return fleet.Change{}, false
		case report.GetSequence() == 0 && vm.Migration != "":
			l.holdCard(host, report)
			l.Changed(vm.Name)
			return fleet.Change{}, false
		case report.GetSequence() == 0:
			return late(vm, fleet.Slot(said.GetSlot()))
		case !vm.Changing() || report.GetSequence() != sequenceChange+vm.Change.Sequence:
			return fleet.Change{}, false
		}
		return *vm.Change.Ended(causeOf(said)), true
	})
}

// causeOf gives why a change has failed, "" if it has not.
func causeOf(said *godwitv1.HardwareChanged) string {
	if said.GetCode() == "" {
		return ""
	}
	cause := cmp.Or(said.GetCause(), said.GetCode())
	if hint := said.GetHint(); hint != "" {
		cause += "; " + hint
	}
	return wire.Bounded(cause)
}

// late gives the removal of a card that the guest has let go of after that had
// failed.
func late(vm fleet.VM, slot fleet.Slot) (fleet.Change, bool) {
	change, has := vm.Spec.Removal(slot)
	if failed := vm.Change; has && failed != nil && failed.State == fleet.ChangeFailed && failed.Remove && failed.Slot() == slot {
		change.Sequence = failed.Sequence
	}
	return *change.Ended(""), has
}

// FailChange ends a pending change that can't be carried out, unless its host was told
// of it: what may be done has not failed.
func (l *Lifecycle) FailChange(ctx context.Context, is fleet.VM, cause error) error {
	return l.settle(ctx, is.Name, func(vm fleet.VM) (fleet.Change, bool) {
		if vm.UID != is.UID || vm.Owner != is.Owner || !vm.Changing() || !vm.Change.Untold || vm.Change.Sequence != is.Change.Sequence {
			return fleet.Change{}, false
		}
		return *vm.Change.Ended(wire.Bounded(cause.Error())), true
	})
}

// settle records the end of the change that ended gives.
func (l *Lifecycle) settle(ctx context.Context, name fleet.VMName, ended func(fleet.VM) (fleet.Change, bool)) error {
	ctx, cancel := l.Runtime.Within(ctx, reportWithin)
	defer cancel()
	for range store.MaxConflicts {
		entry, err := l.Tables.VMs.Get(ctx, string(name))
		if fleet.CodeOf(err) == fleet.NotFound {
			return nil
		}
		if err != nil {
			return err
		}
		change, news := ended(entry.Value)
		if !news {
			return nil
		}
		vm, ops := l.settled(entry.Value, change)
		err = l.commit(ctx, store.If(l.Tables.VMs.At(entry.Name, entry.Version)), append(ops, l.Tables.VMs.Put(entry.Name, vm))...)
		if err == nil {
			l.Log.Info("hardware changed", "vm", name, "change", change, "state", change.State, "cause", change.Cause)
		}
		if fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return tooManyConflicts("change the hardware", name)
}

// settled gives a VM after the end of a change, and what is stored with it.
func (l *Lifecycle) settled(vm fleet.VM, change fleet.Change) (fleet.VM, []store.Op) {
	var ops []store.Op
	if l.Hardware != nil {
		ops = l.Hardware.Settled(vm, change)
	}
	if change.State == fleet.ChangeDone {
		vm.Spec = vm.Spec.With(change)
	}
	if vm.Change != nil && vm.Change.Sequence == change.Sequence {
		vm.Change = &change
	}
	return vm, ops
}
