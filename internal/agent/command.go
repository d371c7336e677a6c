package agent

import (
	"context"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
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
		m, err := a.machineFor(ctx, op.StartInstance.GetInstance())
		if err != nil {
			a.refuse(command, a.endedInstance(command, op.StartInstance.GetInstance().GetVm(), err), err)
			return
		}
		m.do(command, func() *godwitv1.Report { return m.startAlone(ctx, op.StartInstance.GetInstance()) })
	case *godwitv1.Command_StopInstance:
		if m := a.find(machineKey{fleet.VMName(op.StopInstance.GetVm()), fleet.Epoch(command.GetEpoch())}); m != nil && op.StopInstance.GetGraceMs() == 0 {
			m.hurryUp() // an earlier stop may be waiting for the guest
		}
		a.with(command, op.StopInstance.GetVm(), 0, a.absentInstance(command, op.StopInstance.GetVm()), func(m *machine) *godwitv1.Report {
			return m.stop(ctx, op.StopInstance.GetGraceMs())
		})
	case *godwitv1.Command_ForgetInstance:
		a.with(command, op.ForgetInstance.GetVm(), 0, nil, func(m *machine) *godwitv1.Report {
			if uid := op.ForgetInstance.GetUid(); uid != "" && uid != string(m.uid) {
				return nil // that one is gone, and another VM has its name
			}
			return m.forget(ctx)
		})
	case *godwitv1.Command_PrepareTarget:
		m, err := a.machineFor(ctx, op.PrepareTarget.GetInstance())
		if err != nil {
			a.refuse(command, targetFailed(err, true), err)
			return
		}
		m.do(command, func() *godwitv1.Report {
			if !m.isOf(command.GetSubject()) {
				return targetFailed(errOtherMigration(m), false)
			}
			return m.prepareTarget(ctx, command.GetSubject(), op.PrepareTarget)
		})
	default:
		a.migrationCommand(ctx, command)
	}
}

// migrationCommand does the same for what follows the preparation.
func (a *Agent) migrationCommand(ctx context.Context, command *godwitv1.Command) {
	const target = 1 // its epoch is one more than the migration's
	gone := fmt.Errorf("its instance is not on %s", a.config.Name)
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_StartCopy:
		a.with(command, op.StartCopy.GetVm(), 0, sourceFailed(gone, true), func(m *machine) *godwitv1.Report {
			return m.startCopy(ctx, command, op.StartCopy)
		})
	case *godwitv1.Command_ResumeSource:
		epoch, there := fleet.Epoch(op.ResumeSource.GetNewEpoch()), fleet.Epoch(0)
		if epoch > fleet.Epoch(command.GetEpoch()) && a.find(machineKey{fleet.VMName(op.ResumeSource.GetVm()), epoch}) != nil {
			there = epoch - fleet.Epoch(command.GetEpoch()) // it was renumbered, and nobody heard the answer
		}
		a.with(command, op.ResumeSource.GetVm(), there, sourceFailed(gone, true), func(m *machine) *godwitv1.Report {
			return m.resumeSource(ctx, epoch)
		})
	case *godwitv1.Command_RetireSource:
		a.with(command, op.RetireSource.GetVm(), 0, sourceRetired(), func(m *machine) *godwitv1.Report {
			return m.retireSource(ctx)
		})
	case *godwitv1.Command_ReleaseSource:
		a.with(command, op.ReleaseSource.GetVm(), 0, sourceReleased(), func(m *machine) *godwitv1.Report {
			return m.releaseSource(ctx)
		})
	case *godwitv1.Command_RunTarget:
		a.with(command, op.RunTarget.GetVm(), target, targetFailed(gone, true), func(m *machine) *godwitv1.Report {
			return m.runTarget(ctx)
		})
	case *godwitv1.Command_FinishTarget:
		a.with(command, op.FinishTarget.GetVm(), target, targetFinished(), func(m *machine) *godwitv1.Report {
			if !m.isOf(command.GetSubject()) { // finished, and perhaps the next one's source
				return targetFinished()
			}
			return m.finishTarget()
		})
	case *godwitv1.Command_ReleaseTarget:
		a.with(command, op.ReleaseTarget.GetVm(), target, targetReleased(0, nil), func(m *machine) *godwitv1.Report {
			if !m.isOf(command.GetSubject()) { // released, and another one's target
				return targetReleased(0, nil)
			}
			return m.releaseTarget(ctx, op.ReleaseTarget)
		})
	default:
		a.log.Error("a command of no known kind", "subject", command.GetSubject(), "sequence", command.GetSequence())
	}
}

// with queues a task for an existing machine, or gives the answer for one
// that does not exist.
func (a *Agent) with(command *godwitv1.Command, vm string, later fleet.Epoch, absent *godwitv1.Report, task func(*machine) *godwitv1.Report) {
	m := a.find(machineKey{fleet.VMName(vm), fleet.Epoch(command.GetEpoch()) + later})
	if m != nil {
		m.do(command, func() *godwitv1.Report { return task(m) })
		return
	}
	if absent != nil {
		a.reply(command, absent)
	}
}

func (a *Agent) reply(command *godwitv1.Command, report *godwitv1.Report) {
	report.Subject, report.Epoch, report.Sequence = command.GetSubject(), command.GetEpoch(), command.GetSequence()
	if failed(report) {
		report.Sequence = 0 // as answer does
	}
	a.say(report)
}

// refuse answers a command that is not to be carried out.
func (a *Agent) refuse(command *godwitv1.Command, report *godwitv1.Report, why error) {
	a.log.Error("a command is refused", "subject", command.GetSubject(), "epoch", command.GetEpoch(), "sequence", command.GetSequence(), "error", why)
	a.reply(command, report)
}

// machineFor gives the machine of an instance, a new one if there is none and may
// be one.
func (a *Agent) machineFor(ctx context.Context, instance *godwitv1.Instance) (*machine, error) {
	key := machineKey{fleet.VMName(instance.GetVm()), fleet.Epoch(instance.GetEpoch())}
	if m := a.find(key); m != nil {
		return m, nil
	}
	if err := a.checkNew(instance); err != nil {
		return nil, err
	}
	m := a.newMachine(key, fleet.InstanceUID(instance.GetUid()))
	a.add(m) // only this goroutine does, once the agent runs
	a.start(ctx, m)
	return m, nil
}

func (a *Agent) absentInstance(command *godwitv1.Command, vm string) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
		Vm: vm, Epoch: command.GetEpoch(), State: "absent",
	}}}
}

func (a *Agent) endedInstance(command *godwitv1.Command, vm string, cause error) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
		Vm: vm, Epoch: command.GetEpoch(), State: "exited", Cause: cause.Error(),
	}}}
}

func errOtherMigration(m *machine) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: "prepare", Subject: "vm " + string(m.key.vm),
		Cause: fmt.Sprintf("what migration %s left on %s is not removed yet", m.record.Migration, m.agent.config.Name),
		Hint:  "try again; the agent's log says what keeps it",
	}
}

func sourceFailed(err error, gone bool) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceFailed{SourceFailed: &godwitv1.SourceFailed{
		Code: string(fleet.CodeOf(err)), Cause: err.Error(), Hint: fleet.HintOf(err), Gone: gone,
	}}}
}

func targetFailed(err error, gone bool) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetFailed{TargetFailed: &godwitv1.TargetFailed{
		Code: string(fleet.CodeOf(err)), Cause: err.Error(), Hint: fleet.HintOf(err), Gone: gone,
	}}}
}

func sourceRetired() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceRetired{SourceRetired: &godwitv1.SourceRetired{}}}
}

func sourceReleased() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceReleased{SourceReleased: &godwitv1.SourceReleased{}}}
}

func targetFinished() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetFinished{TargetFinished: &godwitv1.TargetFinished{}}}
}

func targetReleased(frames int, failed error) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetReleased{TargetReleased: &godwitv1.TargetReleased{
		FramesReturned: int64(frames), ReturnError: textOf(failed),
	}}}
}

// textOf is an error for a record, "" for none.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
