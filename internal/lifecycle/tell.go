package lifecycle

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/wire"
)

// Sequences of the commands of a VM's life cycle within one epoch. A command
// that is sent again has the same one. Every Stop that is asked for is a new
// command, since it may leave the guest less time than the one before.
const (
	sequenceStart     = 1
	sequenceFirstStop = 2
	sequenceForget    = 1 << 32
)

// stopAgainEvery is how long a host has for a stop, or a change of the hardware,
// before it is sent again: its agent may not have been able to carry it out. One that is still at it does not do
// it twice. A start is not sent again in a session: one that has failed, and whose
// answer is under way, would succeed.
const stopAgainEvery = 20 * time.Second

// order is a command that was sent: the same one is not sent twice to the same
// session, unless it is due again.
type order struct {
	uid      fleet.InstanceUID
	owner    fleet.Owner
	sequence uint64
	session  uint64
}

// tell sends the host the command of the VM's phase, once in each session, and a
// stop or a change again after a while. The VM is read in the session for which the command is:
// what the host has answered in an earlier one is recorded then. A start that has
// failed would succeed now.
func (l *Lifecycle) tell(ctx context.Context, host fleet.HostName, name fleet.VMName) error {
	session := l.Hosts.Session(host)
	if session == 0 {
		return nil // told when the host connects
	}
	entry, err := l.Tables.VMs.Get(ctx, string(name))
	vm := entry.Value
	switch {
	case fleet.CodeOf(err) == fleet.NotFound:
		return nil
	case err != nil:
		return err
	case vm.Owner.Host != host || !wants(vm):
		return nil // the view hears of it
	}
	command, err := l.command(ctx, vm)
	if err != nil {
		return err
	}
	now := order{uid: vm.UID, owner: vm.Owner, sequence: command.GetSequence(), session: session}
	l.mu.Lock()
	same := l.told[name] == now
	l.mu.Unlock()
	if same {
		return nil
	}
	if l.Volumes != nil {
		if ready, err := l.Volumes.Ready(vm, command); !ready {
			return err
		}
	}
	if command.GetChangeHardware() != nil && vm.Change.Untold {
		if err := l.noteTold(ctx, entry); err != nil {
			return err
		}
	}
	if err := l.Hosts.SendIn(session, host, command); err != nil {
		return err
	}
	l.mu.Lock()
	l.told[name] = now
	l.mu.Unlock()
	if vm.Phase != fleet.VMStarting {
		l.Runtime.AfterFunc(stopAgainEvery, func() { l.untell(name, now) })
	}
	return nil
}

// untell makes an order due again, unless another one was sent since.
func (l *Lifecycle) untell(name fleet.VMName, told order) {
	l.mu.Lock()
	due := l.told[name] == told
	if due {
		delete(l.told, name)
	}
	l.mu.Unlock()
	if due {
		l.Changed(name)
	}
}

func (l *Lifecycle) command(ctx context.Context, vm fleet.VM) (*godwitv1.Command, error) {
	command := &godwitv1.Command{Subject: string(vm.Name), Epoch: uint64(vm.Owner.Epoch), Uid: string(vm.UID)}
	if vm.Phase == fleet.VMStopping {
		asked, err := l.Tables.Stops.Get(ctx, string(vm.Name))
		if err != nil {
			return nil, err
		}
		command.Sequence = asked.Value.Sequence
		command.Op = &godwitv1.Command_StopInstance{StopInstance: &godwitv1.StopInstance{
			Vm: string(vm.Name), GraceMs: asked.Value.Grace.Milliseconds(),
		}}
		return command, nil
	}
	if vm.Phase == fleet.VMRunning {
		return command, l.changeCommand(ctx, vm, command)
	}
	networks, err := reconcile.PortNetworks(ctx, l.Tables.Networks, vm.Spec)
	if err != nil {
		return nil, err
	}
	command.Sequence = sequenceStart
	command.Op = &godwitv1.Command_StartInstance{StartInstance: &godwitv1.StartInstance{Instance: &godwitv1.Instance{
		Vm: string(vm.Name), Uid: string(vm.UID), Epoch: uint64(vm.Owner.Epoch),
		Spec: wire.EncodeSpec(vm.Spec), Networks: networks, LocalEpoch: uint64(vm.Local.Epoch),
	}}}
	return command, nil
}
