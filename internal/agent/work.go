package agent

import (
	"cmp"
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

// carryOut carries out what is queued, until the machine is gone and nothing
// is left. What is queued later the server asks for again.
func (m *machine) carryOut(ctx context.Context) {
	for {
		select {
		case task := <-m.work:
			task()
			continue
		case <-ctx.Done():
			return
		case <-m.gone:
		}
		select {
		case task := <-m.work:
			task()
		default:
			return
		}
	}
}

// do queues a command, unless it has been answered or begun before. What has waited
// until the machine was gone is for what is there then.
func (m *machine) do(ctx context.Context, command *godwitv1.Command, task func() *godwitv1.Report) {
	m.mu.Lock()
	answer, known := m.told.Begin(command, m.record.Migration)
	m.mu.Unlock()
	switch {
	case answer != nil:
		m.agent.say(answer)
		return
	case known:
		return
	}
	select {
	case m.work <- func() { m.takeTurn(ctx, command, task) }:
	default:
		m.untold(command)
		m.agent.log.Error("too many commands wait", "vm", m.key.vm, "epoch", m.key.epoch)
	}
}

// takeTurn carries out a command, if it is still for this machine.
func (m *machine) takeTurn(ctx context.Context, command *godwitv1.Command, task func() *godwitv1.Report) {
	if m.isGone() {
		if ctx.Err() == nil { // and not with the machine
			m.agent.command(ctx, command)
		}
		return
	}
	if err := m.adoptAgain(); err != nil && !endsInstance(command) {
		m.agent.log.Error("a command waits until its instance is adopted", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
		m.untold(command)
		return
	}
	if !m.isMeantBy(command) { // whose instance it is was not known before
		m.untold(command) // when it comes again, nothing is found
		return
	}
	if report := task(); report != nil {
		m.answer(command, report)
	}
}

// endsInstance tells whether a command needs no more of an instance than its
// process.
func endsInstance(command *godwitv1.Command) bool {
	return command.GetStopInstance() != nil || command.GetForgetInstance() != nil
}

// inTurn has the worker do something between two commands, and waits for it.
func (m *machine) inTurn(ctx context.Context, task func() error) error {
	done := make(chan error, 1)
	select {
	case m.work <- func() {
		if ctx.Err() != nil || m.isGone() { // nobody waits for it any more
			done <- cmp.Or(ctx.Err(), errGone)
			return
		}
		err := m.adoptAgain()
		if err == nil {
			err = task()
		}
		done <- err
	}:
	case <-m.gone:
		return errGone
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-m.gone:
		return errGone
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *machine) isGone() bool {
	select {
	case <-m.gone:
		return true
	default:
		return false
	}
}

// untold lets a command that was not carried out come again.
func (m *machine) untold(command *godwitv1.Command) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told.Forget(command)
}

// adoptAgain, of the worker, tries what an adoption before has failed to do.
func (m *machine) adoptAgain() error {
	m.mu.Lock()
	failed := m.unadopted
	m.mu.Unlock()
	if failed == nil {
		return nil
	}
	if err := m.adopt(m.life); err != nil {
		return err
	}
	m.watch()() // and first what is the worker's of it
	m.tellAdopted()
	return nil
}

// tellAdopted says by which QEMU a VM runs here: when the session began, nobody
// could ask it.
func (m *machine) tellAdopted() {
	said := m.inventory(m.life)
	if said.GetQemuVersion() == "" || said.GetState() == string(fleet.InstanceIncoming) {
		return
	}
	m.agent.say(&godwitv1.Report{Subject: string(m.key.vm), Epoch: uint64(m.key.epoch), Event: &godwitv1.Report_Instance{Instance: said}})
}

// answer reports the end of a command. One that failed may be tried again by the
// same sequence; so may one that was to end the instance, if that is still here.
func (m *machine) answer(command *godwitv1.Command, report *godwitv1.Report) {
	pledge.Answering(command, report)
	report.At = timestamppb.Now() // and not when a session takes it
	m.mu.Lock()
	if pledge.Failed(report) || endsInstance(command) {
		m.told.Forget(command)
	} else {
		m.told.End(command, report)
	}
	m.mu.Unlock()
	m.agent.say(report)
}
