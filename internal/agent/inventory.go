package agent

import (
	"cmp"
	"context"
	"errors"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

// sayStateWithin is how long a session waits for one QEMU that has to be asked.
const sayStateWithin = 500 * time.Millisecond

func (m *machine) instanceReport(state fleet.InstanceState, cause string) *godwitv1.Report {
	return &godwitv1.Report{Epoch: uint64(m.key.epoch), Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
		Vm: string(m.key.vm), Uid: string(m.uid), Epoch: uint64(m.key.epoch), State: string(state), Cause: cause,
	}}}
}

// runningReport, of the worker, says that the instance runs, and by which QEMU.
func (m *machine) runningReport(cause string) *godwitv1.Report {
	report := m.instanceReport(fleet.InstanceRunning, cmp.Or(cause, m.halted))
	tellQEMU(report.GetInstance(), m.instance)
	return report
}

// tellQEMU says what QEMU an instance has: not always the one that is installed.
func tellQEMU(said *godwitv1.InstanceReport, instance *qemu.Instance) {
	if instance == nil || instance.Ended() {
		return
	}
	can := instance.Abilities()
	said.QemuVersion, said.MigrationCapabilities = can.Version, can.Capabilities
}

// inventory is what Hello says of the machine.
func (m *machine) inventory(ctx context.Context) *godwitv1.InstanceReport {
	state := m.state(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	cause := m.endCause
	if state == fleet.InstanceRunning && m.halted != "" {
		state, cause = fleet.InstancePaused, m.halted
	}
	said := m.instanceReport(state, cause).GetInstance()
	said.Migration = m.record.Migration
	tellQEMU(said, m.instance)
	return said
}

// state of the instance, as a session is told of it.
func (m *machine) state(ctx context.Context) fleet.InstanceState {
	ctx, cancel := context.WithTimeout(ctx, sayStateWithin)
	defer cancel()
	opened := m.mayHaveRun(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.unadopted != nil:
		return fleet.InstanceRunning // nobody can tell: the server must not think it gone
	case m.launching && m.record.Role == alone:
		return fleet.InstanceStarting
	case m.launching:
		return m.record.Role.State(false, false)
	}
	return m.record.Role.State(m.instance == nil || m.instance.Ended(), opened)
}

// endReport, of the worker, says what became of an instance that was to end for a
// cause, if there is one, and of which not all could be removed, if left says so.
func (m *machine) endReport(cause, left error) *godwitv1.Report {
	if left != nil {
		m.agent.log.Error("an instance could not be removed", "vm", m.key.vm, "epoch", m.key.epoch, "ended", m.hasEnded(), "error", left)
	}
	if !m.hasEnded() {
		return m.runningReport(textOf(errors.Join(cause, left)))
	}
	return m.instanceReport(fleet.InstanceExited, textOf(cause))
}

// unknownInstance reports of an instance that has no machine here.
func unknownInstance(command *godwitv1.Command, vm string, state fleet.InstanceState, cause string) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
		Vm: vm, Epoch: command.GetEpoch(), State: string(state), Cause: cause,
	}}}
}
