package agent

import (
	"math/rand/v2"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
)

// complete carries a migration out to its end, and gives all its commands, those
// of a roll-back too.
func (m *move) complete() []*godwitv1.Command {
	m.t.Helper()
	prepare := m.prepareCommand()
	m.port = m.target.do(prepare).GetTargetPrepared().GetPort()
	run := m.runCommand()
	m.grant(run)
	start := m.copyCommand(0)
	m.source.sendCommand(start)
	m.target.awaitReport("running target", answers(run))
	m.source.awaitReport("measurement", answers(start))
	all := []*godwitv1.Command{prepare, start, run, m.resumeCommand(), m.releaseCommand()}
	m.settle()
	retire, release, finish := m.command(), m.command(), m.command()
	retire.Op = &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: testVM}}
	release.Op = &godwitv1.Command_ReleaseSource{ReleaseSource: &godwitv1.ReleaseSource{Vm: testVM}}
	finish.Op = &godwitv1.Command_FinishTarget{FinishTarget: &godwitv1.FinishTarget{Vm: testVM}}
	return append(all, retire, release, finish)
}

// A VM has moved from h1 to h2 and back. Whatever was ever said of its first
// epochs comes again, to both agents and in any order, also to agents that have
// started since: the guest goes on at h1, and h2 has nothing of it.
func TestOldCommandsComeAgain(t *testing.T) {
	m := newMove(t)
	old := append(m.complete(),
		startCommand(1, firmware(1)), // without the disk, whose lock would keep it from running
		stopCommand(2, 1, 0), forgetCommand(3, 1), stopCommand(2, 2, 0), forgetCommand(3, 2))
	back := m.back()
	back.complete()
	h1, h2 := m.source, m.target
	h2.checkNothingLeft()
	pid := h1.instance(testVM, 3).PID()
	barrier := uint64(1)
	for _, restarted := range []bool{false, true} {
		if restarted {
			for _, h := range []*testHost{h1, h2} {
				h.stop()
				h.start()
			}
		}
		events := h1.instance(testVM, 3).Subscribe()
		order := rand.New(rand.NewPCG(1, 2))
		for range 25 {
			order.Shuffle(len(old), func(i, j int) { old[i], old[j] = old[j], old[i] })
			for _, command := range old {
				h1.sendCommand(command)
				h2.sendCommand(command)
			}
		}
		for _, h := range []*testHost{h1, h2} {
			h.sendCommand(startCommand(1, firmware(1))) // and nothing after it
			h.idle(barrier)
		}
		barrier++
		checkUndisturbed(t, events)
		h1.checkRunState(testVM, 3, "running")
		h1.checkGates("after old commands", network.Pass)
		if got := h1.instance(testVM, 3).PID(); got != pid || len(h1.processes()) != 1 {
			t.Errorf("epoch 3 is process %d, it was %d; %v", got, pid, h1.processes())
		}
		h2.checkNothingLeft()
	}
}

// idle returns when the agent has taken all commands, and all its machines have
// done what was queued.
func (h *testHost) idle(barrier uint64) {
	h.t.Helper()
	last := stopCommand(barrier, 1, 0)
	last.Subject, last.GetStopInstance().Vm = "barrier", "barrier"
	h.do(last)
	for _, m := range h.agent.all() {
		if err := m.inTurn(h.t.Context(), func() error { return nil }); err != nil && err != errGone {
			h.t.Error(err)
		}
	}
}

// checkUndisturbed demands that a guest was neither stopped nor resumed.
func checkUndisturbed(t *testing.T, events *qemu.Subscription) {
	t.Helper()
	defer events.Close()
	for {
		select {
		case event := <-events.Events():
			t.Errorf("the guest: %s", event.Kind)
		default:
			return
		}
	}
}
