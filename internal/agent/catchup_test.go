package agent

import (
	"syscall"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
)

// A source asks its target whether it has caught up, while the guest runs; one that
// can't be asked stops the guest all the same.
func TestSourceAsksBeforeItStops(t *testing.T) {
	for name, port := range map[string]uint32{"answered": testPeerPort, "nobody answers": 1} {
		t.Run(name, func(t *testing.T) {
			m := newMove(t)
			if !m.source.instance(testVM, 1).Abilities().CanHold {
				t.Skip("a QEMU that can't be held is not kept from stopping the guest (needs 8.1)")
			}
			m.prepare()
			states := make(chan qemu.RunState, 64)
			look := func() { states <- m.source.runState(testVM, 1) }
			m.source.onDial.Store(&look)
			run := m.runCommand()
			m.grant(run)
			start := m.copyCommand(0)
			start.GetStartCopy().TargetPeerPort = port
			m.source.sendCommand(start)
			first := receive(t, "question", states)
			m.target.awaitReport("running target", answers(run))
			m.settle()
			if more := len(states); more > 0 && name == "nobody answers" {
				t.Errorf("it asks one that does not answer %d times more", more)
			}
			close(states)
			for state := first; state != ""; state = <-states { // again, if the guest has written more meanwhile
				if !state.Running() {
					t.Errorf("it asks when the guest is %s", state)
				}
			}
		})
	}
}

// A target has caught up when its QEMU answers, and says so only to its source.
func TestCatchUp(t *testing.T) {
	m := newLocalMove(t)
	m.prepareDisks()
	request := &godwitv1.CatchUpRequest{Migration: testMigration, Vm: testVM, Epoch: 2}
	other := m.targetFor(m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: "h3"}))
	if _, err := other.CatchUp(t.Context(), request); fleet.CodeOf(err) != fleet.Denied {
		t.Errorf("another host asks: %v", err)
	}
	pid := m.target.instance(testVM, 2).PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	source := m.targetFor(m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: m.source.name}))
	answered := make(chan error, 2)
	for range 2 {
		go func() {
			_, err := source.CatchUp(t.Context(), request)
			answered <- err
		}()
	}
	if err := receive(t, "refusal of the second question", answered); fleet.CodeOf(err) != fleet.Unavailable {
		t.Errorf("a target that stands still answers: %v", err)
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "answer", answered); err != nil {
		t.Error(err)
	}
	if answer := m.target.do(m.releaseCommand()); answer.GetTargetReleased() == nil {
		t.Errorf("release: %v", answer)
	}
	m.target.checkNothingLeft()
}
