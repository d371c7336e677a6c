package agent

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/network"
)

// What an earlier migration has left open is asked for again when its host
// returns. It must not hit the VM's next migration, whose instances have the
// same names.
func TestCommandsOfAnotherMigration(t *testing.T) {
	m := newMove(t)
	m.prepare()
	late := m.releaseCommand()
	late.Subject = "m0"
	if answer := m.target.do(late); answer.GetTargetReleased() == nil {
		t.Errorf("release of an earlier migration: %v", answer)
	}
	m.target.checkGates("after it", network.TunnelOnly)
	m.target.checkRunState(testVM, 2, "inmigrate")

	other := m.prepareCommand()
	other.Subject = "m9"
	m.target.sendCommand(other)
	m.target.awaitReport("refusal", func(r *godwitv1.Report) bool {
		return r.GetSubject() == "m9" && r.GetTargetFailed().GetCode() == "conflict"
	})
	m.target.checkRunState(testVM, 2, "inmigrate")

	run := m.runCommand()
	m.grant(run)
	m.source.sendCommand(m.copyCommand(0))
	m.target.awaitReport("running target", answers(run))
	late = m.command()
	late.Subject, late.Op = "m0", &godwitv1.Command_FinishTarget{FinishTarget: &godwitv1.FinishTarget{Vm: testVM}}
	if answer := m.target.do(late); answer.GetTargetFinished() == nil {
		t.Errorf("end of an earlier migration: %v", answer)
	}
	m.target.checkGates("forwarding goes on", network.Settling)
	m.settle()
}
