package agent

import (
	"testing"

	"godwit.dev/godwit/internal/network"
)

// From the source's stop on the target takes the frames of its own overlay. A
// map that comes before it has loaded, and still has the old owner, does not
// change that.
func TestClaimBeforeLoaded(t *testing.T) {
	m := newMove(t)
	m.target.apply(1, blue(m.source, ownedBy(m.source)))
	m.prepare()
	tap := m.target.taps()[0].Name
	m.target.apply(2, blue(m.source, ownedBy(m.source)))
	m.target.checkWay("prepared", testMAC, vxlanDevice, m.source.space.Addr.String())
	if err := m.target.agent.find(machineKey{testVM, 2}).receiveInTurn(); err != nil {
		t.Fatal(err)
	}
	claimed, _ := m.target.way(testMAC)
	m.target.apply(3, blue(m.source, ownedBy(m.source)))
	if after, _ := m.target.way(testMAC); claimed != tap || after != tap {
		t.Errorf("frames go to %q, and after a map to %q; want %q", claimed, after, tap)
	}
	m.target.do(m.releaseCommand())
	m.target.checkWay("released", testMAC, vxlanDevice, m.source.space.Addr.String())
}

// What lets frames come does not close the gate of a guest that runs, however
// late it is.
func TestReceiveAfterRun(t *testing.T) {
	m := newMove(t)
	m.prepare()
	run := m.runCommand()
	m.grant(run)
	m.copyUntilSwitch()
	m.target.awaitReport("running target", answers(run))
	late := m.target.agent.find(machineKey{testVM, 2})
	late.setReceives(false)
	if err := late.receiveInTurn(); err != nil {
		t.Error(err)
	}
	m.target.checkGates("running", network.Settling)
	m.settle()
}

// The target's agent is replaced before anybody has heard that it is prepared:
// the next one answers for what is there.
func TestPrepareAgain(t *testing.T) {
	m := newMove(t)
	m.prepare()
	before := m.port
	processes := m.target.processes()
	m.target.stop()
	m.target.start()
	m.prepare()
	if after := m.target.processes(); m.port != before || len(after) != 1 || after[0] != processes[0] {
		t.Errorf("prepared %v at port %d, then %v at port %d", processes, before, after, m.port)
	}
	m.target.checkGates("prepared again", network.TunnelOnly)
	run := m.runCommand()
	m.grant(run)
	m.copyUntilSwitch()
	m.target.awaitReport("running target", answers(run))
	m.settle()
}
