package agent

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/wire"
)

// What would be another machine to the guest is found before anything is copied; the
// same one is recorded, and asked for again when the target runs.
func TestTargetIsTheMachine(t *testing.T) {
	m := newMove(t)
	refused := m.refusal(m.compared(func(i *godwitv1.Instance) {
		i.Spec.MemoryBytes *= 2
		i.Spec.Ports[0].Mac = "52:54:00:77:00:99"
	}))
	for _, part := range []string{
		"another machine on h2 than on h1", "memory is 64MiB at the source and 128MiB at the target",
		"NIC nic0 MAC is " + testMAC + " at the source and 52:54:00:77:00:99 at the target",
	} {
		checkContains(t, refused.GetCause(), part)
	}
	checkContains(t, refused.GetHint(), "stop and start the VM")
	m.target.checkNothingLeft()
	m.source.checkRunState(testVM, 1, "running")
	m.source.checkGates("after the refusal", network.Pass)

	prepared := m.target.do(m.compared(func(*godwitv1.Instance) {})).GetTargetPrepared()
	recorded := wire.MachineOf(prepared.GetSourceMachine())
	if recorded[fleet.MachineRAM] != "64MiB" || recorded["disk root size"] == "" {
		t.Fatalf("it is recorded as %v", recorded)
	}
	m.port = prepared.GetPort()
	m.grant(m.runCommand())
	m.copyUntilSwitch()
	ran := m.target.awaitReport("the target's machine", func(r *godwitv1.Report) bool { return r.GetTargetCompared() != nil })
	if found := recorded.Differences(wire.MachineOf(ran.GetTargetCompared().GetMachine())); found != nil {
		t.Errorf("after the move it differs: %v", found)
	}
	m.settle()
}
