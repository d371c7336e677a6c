package agent

import (
	"context"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

// checkCommand refuses what no server says, before anything is made for it: names
// become folders.
func checkCommand(command *godwitv1.Command) error {
	refuse := func(cause string, err error) error {
		return &fleet.Error{
			Code: fleet.Invalid, Op: "read command", Cause: cause, Err: err,
			Hint: "see that the server is of this agent's version or the next",
		}
	}
	message := command.ProtoReflect()
	op := message.WhichOneof(message.Descriptor().Oneofs().ByName("op"))
	if op == nil {
		return refuse("it is of no kind that this agent knows", nil)
	}
	body, epoch := message.Get(op).Message(), command.GetEpoch()
	if field := body.Descriptor().Fields().ByName("instance"); field != nil {
		body = body.Get(field).Message()
		epoch = body.Get(body.Descriptor().Fields().ByName("epoch")).Uint()
	}
	vm := body.Get(body.Descriptor().Fields().ByName("vm")).String()
	for _, name := range []string{command.GetSubject(), vm} {
		if err := fleet.CheckName(name[:min(len(name), nameShown)]); err != nil {
			return refuse(string(op.Name()), err)
		}
	}
	if behind := epoch - command.GetEpoch(); behind > 1 {
		return refuse(fmt.Sprintf("%s: its epoch is %d, and its instance's %d", op.Name(), command.GetEpoch(), epoch), nil)
	}
	return nil
}

// nameShown is more than a name may have, and what of another is shown.
const nameShown = 64

// command finds the machine that a command is for and queues it there.
func (a *Agent) command(ctx context.Context, command *godwitv1.Command) {
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_StartInstance:
		m, err := a.machineFor(ctx, command, op.StartInstance.GetInstance())
		if err != nil {
			a.startsNever(op.StartInstance.GetInstance(), err)
			a.refuse(command, unknownInstance(command, op.StartInstance.GetInstance().GetVm(), fleet.InstanceExited, err.Error()), err)
			return
		}
		m.do(ctx, command, func() *godwitv1.Report { return m.startAlone(ctx, op.StartInstance) })
	case *godwitv1.Command_StopInstance:
		key := machineKey{fleet.VMName(op.StopInstance.GetVm()), fleet.Epoch(command.GetEpoch())}
		if m := a.meant(command, key); m != nil && op.StopInstance.GetGraceMs() == 0 {
			m.hurryUp() // an earlier stop may be waiting for the guest
		}
		a.with(ctx, command, key, unknownInstance(command, op.StopInstance.GetVm(), fleet.InstanceAbsent, ""), func(m *machine) *godwitv1.Report {
			return m.stop(ctx, op.StopInstance.GetGraceMs())
		})
	case *godwitv1.Command_ForgetInstance:
		key := machineKey{fleet.VMName(op.ForgetInstance.GetVm()), fleet.Epoch(command.GetEpoch())}
		a.with(ctx, command, key, nil, func(m *machine) *godwitv1.Report {
			if !m.forget(ctx, op.ForgetInstance) {
				m.untold(command) // it may be proven anew
			}
			return nil
		})
	case *godwitv1.Command_RemoveDisks:
		go a.removeDisks(command)
	case *godwitv1.Command_ChangeHardware:
		key := machineKey{fleet.VMName(op.ChangeHardware.GetVm()), fleet.Epoch(command.GetEpoch())}
		a.with(ctx, command, key, nil, func(m *machine) *godwitv1.Report {
			return m.changeHardware(ctx, command, op.ChangeHardware)
		})
	case *godwitv1.Command_PrepareTarget:
		m, err := a.machineFor(ctx, command, op.PrepareTarget.GetInstance())
		if err != nil {
			a.refuse(command, pledge.TargetFailed(err, true), err)
			return
		}
		m.do(ctx, command, func() *godwitv1.Report {
			if !m.kept().TargetOf(command.GetSubject()) {
				return pledge.TargetFailed(errOtherMigration("prepare", m), false)
			}
			if refusal := m.kept().Refuses(command); refusal != nil {
				return refusal
			}
			return m.prepareTarget(ctx, command.GetSubject(), op.PrepareTarget)
		})
	default:
		a.migrationCommand(ctx, command)
	}
}

// migrationCommand does the same for what follows the preparation.
func (a *Agent) migrationCommand(ctx context.Context, command *godwitv1.Command) {
	addressee, known := pledge.AddresseeOf(command, a.config.Name, func(vm fleet.VMName, epoch fleet.Epoch) bool {
		return a.meant(command, machineKey{vm, epoch}) != nil
	})
	if !known {
		a.log.Error("a command of no known kind", "subject", command.GetSubject(), "sequence", command.GetSequence())
		return
	}
	a.with(ctx, command, machineKey{addressee.VM, addressee.Epoch}, addressee.Absent, func(m *machine) *godwitv1.Report {
		if !addressee.Is(m.kept()) {
			a.log.Warn("a command is not for what is here", "vm", m.key.vm, "epoch", m.key.epoch, "migration", m.record.Migration, "of", command.GetSubject(), "sequence", command.GetSequence())
			return addressee.Foreign
		}
		if refusal := m.kept().Refuses(command); refusal != nil {
			return refusal
		}
		return m.migrate(ctx, command)
	})
}

// migrate carries out a command of a migration for the machine that it is for.
func (m *machine) migrate(ctx context.Context, command *godwitv1.Command) *godwitv1.Report {
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_StartCopy:
		return m.startCopy(ctx, command, op.StartCopy)
	case *godwitv1.Command_ResumeSource:
		return m.resumeSource(ctx, op.ResumeSource)
	case *godwitv1.Command_RetireSource:
		return m.retireSource(ctx)
	case *godwitv1.Command_ReleaseSource:
		return m.releaseSource(ctx)
	case *godwitv1.Command_RunTarget:
		return m.runTarget(ctx, op.RunTarget.GetVolumeKey())
	case *godwitv1.Command_FinishTarget:
		return m.finishTarget()
	case *godwitv1.Command_ReleaseTarget:
		return m.releaseTarget(ctx, op.ReleaseTarget)
	}
	return nil
}

// meant gives the machine that a command is for; nil also when it is one of
// another VM, which had the name before or has it since.
func (a *Agent) meant(command *godwitv1.Command, key machineKey) *machine {
	m := a.find(key)
	if m == nil || !m.isMeantBy(command) {
		return nil
	}
	return m
}

func (m *machine) isMeantBy(command *godwitv1.Command) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return pledge.MeantFor(command, m.uid)
}

// with queues a task for an existing machine, or gives the answer for one
// that does not exist.
func (a *Agent) with(ctx context.Context, command *godwitv1.Command, key machineKey, absent *godwitv1.Report, task func(*machine) *godwitv1.Report) {
	if m := a.meant(command, key); m != nil {
		m.do(ctx, command, func() *godwitv1.Report { return task(m) })
		return
	}
	if absent != nil {
		a.say(pledge.Answering(command, absent))
	}
}

// refuse answers a command that is not to be carried out.
func (a *Agent) refuse(command *godwitv1.Command, report *godwitv1.Report, why error) {
	a.log.Error("a command is refused", "subject", command.GetSubject(), "epoch", command.GetEpoch(), "sequence", command.GetSequence(), "error", why)
	a.say(pledge.Answering(command, report))
}

// machineFor gives the machine of an instance, a new one if there is none and may
// be one.
func (a *Agent) machineFor(ctx context.Context, command *godwitv1.Command, instance *godwitv1.Instance) (*machine, error) {
	key := machineKey{fleet.VMName(instance.GetVm()), fleet.Epoch(instance.GetEpoch())}
	for {
		if m := a.meant(command, key); m != nil {
			return m, nil
		}
		if m := a.find(key); m != nil {
			return nil, errOtherVM(m)
		}
		if err := a.checkNew(instance); err != nil {
			return nil, err
		}
		m := a.newMachine(key, fleet.InstanceUID(instance.GetUid()))
		if a.add(m) { // nobody else has meanwhile
			a.start(ctx, m)
			return m, nil
		}
	}
}

func errOtherVM(m *machine) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: "start", Subject: "vm " + string(m.key.vm),
		Cause: fmt.Sprintf("%s has an instance of another VM that had its name, with uid %s, at epoch %d", m.agent.config.Name, m.uid, m.key.epoch),
		Hint:  "start it on another host; once that instance is not wanted, end its QEMU, whose folder is " + m.dir,
	}
}

func errOtherMigration(op string, m *machine) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: op, Subject: "vm " + string(m.key.vm),
		Cause: fmt.Sprintf("what migration %s left on %s is not removed yet", m.record.Migration, m.agent.config.Name),
		Hint:  "try again; the agent's log says what keeps it",
	}
}

// textOf is an error for a record, "" for none.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
