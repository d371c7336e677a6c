package agent

import (
	"net"
	"sync/atomic"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/network"
)

// sendFrames sends frames to the guest, as the source's bridge would.
func (m *move) sendFrames(count int) {
	m.t.Helper()
	out, err := m.source.space.OpenPacket(m.source.taps()[0].Name, etherTest)
	if err != nil {
		m.t.Fatal(err)
	}
	defer out.Close()
	for number := range count {
		if _, err := out.Write(testFrame(m.t, number)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// passed is how many frames the source's gate has let to the guest.
func (m *move) passed() uint64 {
	m.t.Helper()
	return m.source.taps()[0].Counters.ToGuestPassed
}

// readOnlyMove is newMove for a VM that writes no image.
func readOnlyMove(t *testing.T) *move {
	t.Helper()
	f, hosts := newFleet(t, "h1", "h2")
	m := f.moveOf(hosts)
	m.booting = func(epoch fleet.Epoch) *godwitv1.Instance {
		instance := booting(t, f, epoch, bootsector.Busy())
		instance.Spec.Disks[0].ReadOnly = true
		return instance
	}
	m.instance = m.booting(1)
	m.source.run(m.instance)
	m.source.awaitGuest(1)
	return m
}

// refusedMove has the target of a move asked to give up, which it does, before its
// source asks; frames wait in its tap.
func refusedMove(m *move, frames int) *move {
	t := m.t
	t.Helper()
	m.nextAsked(m.leaveUndecided())
	m.sendFrames(frames)
	if !m.ask(t, m.source, 2) {
		t.Fatal("the target keeps its right")
	}
	m.target.checkRunState(testVM, 2, "paused")
	m.target.checkGates("given up", network.Arriving)
	return m
}

// runOn lets the source run on by hand, which does not ask for the frames then.
func (m *move) runOn() {
	m.t.Helper()
	source := m.source.agent.find(machineKey{testVM, 1})
	if err := source.inTurn(m.t.Context(), func() error { return source.runOn(m.t.Context(), m.id) }); err != nil {
		m.t.Fatal(err)
	}
}

// checkNeverRuns tells the target that has given up all that lets another one run.
func (m *move) checkNeverRuns() {
	m.t.Helper()
	if got := m.target.do(m.runCommand()); got.GetTargetRefused() == nil {
		m.t.Errorf("told to run after it gave up: %v", got)
	}
	resume, finish := m.resumeCommand(), m.command()
	resume.Epoch++ // as a server does that knows nothing of the migration, and takes it for the owner
	finish.Op = &godwitv1.Command_FinishTarget{FinishTarget: &godwitv1.FinishTarget{Vm: testVM}}
	m.target.sendCommand(resume)
	m.target.awaitReport("refusal to go on", isSourceFailed)
	m.target.sendCommand(finish)
	m.target.awaitReport("refusal to finish", isTargetFailed)
	m.target.sendCommand(startCommand(m.sequence, m.booting(2)))
	m.target.awaitReport("refusal to start", func(r *godwitv1.Report) bool { return r.GetInstance().GetState() == "exited" })
	m.target.checkRunState(testVM, 2, "paused")
	m.target.checkGates("told to run", network.Arriving)
}

const framesWaiting = 5

// The target's agent ends just after it gave up: what waits in the tap is QEMU's,
// too, and comes to the source by the next agent.
func TestFramesOutliveAnAgentThatGaveUp(t *testing.T) {
	m := refusedMove(readOnlyMove(t), framesWaiting)
	m.target.stop()
	before, told := m.passed(), m.target.count(refusedReport) // the first agent may have ended before it could say so
	m.target.start()
	m.target.awaitReports(told+1, "word of the second agent", refusedReport)
	m.target.checkRunState(testVM, 2, "paused")
	m.checkNeverRuns()
	m.checkRanOn()
	waitFor(t, "the frames", func() bool { return m.passed()-before == framesWaiting })
	m.abort()
}

// Its agent ends just after it gave up, and the next one does not know whether it has the
// lock of an image, which the source may need: it ends at once, and the frames come all
// the same.
func TestNextAgentFreesImages(t *testing.T) {
	m := refusedMove(newMove(t), framesWaiting)
	before := m.passed()
	m.source.stop() // so that nobody asks for the frames, with which it would end
	m.target.stop()
	m.target.start()
	waitFor(t, "the end of the target that gave up", func() bool { return len(m.target.processes()) == 0 })
	m.target.checkGates("ended", network.Arriving)
	m.source.start()
	m.source.awaitReport("word that it runs on", ranOnReport)
	waitFor(t, "the frames", func() bool { return m.passed()-before == framesWaiting })
	m.abort()
}

// The source's agent ends before it has asked for the frames, and the target's is
// away when the next one does: it asks again.
func TestNextAgentHasFramesBack(t *testing.T) {
	m := refusedMove(readOnlyMove(t), framesWaiting)
	before := m.passed()
	m.runOn()
	m.source.stop()
	m.target.stop()
	var dials atomic.Int32
	look := func() { dials.Add(1) }
	m.source.onDial.Store(&look)
	m.source.start()
	waitFor(t, "questions", func() bool { return dials.Load() >= 2 })
	m.target.start()
	m.awaitReturn()
	waitFor(t, "the frames", func() bool { return m.passed()-before == framesWaiting })
	// Asked once more, since nobody heard the answer, it says the same.
	source := m.source.agent.find(machineKey{testVM, 1})
	target, err := m.source.agent.dialPeer(source.record.Peer)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if frames, err := source.returnOnce(t.Context(), target, m.id); frames != 0 || err != nil {
		t.Errorf("returned again: %d frames, %v", frames, err)
	}
	m.abort()
}

// Nobody ever asks for the frames: the servers' release returns them, and ends the
// instance. An old command to prepare it does not.
func TestReleaseOfOneThatGaveUp(t *testing.T) {
	m := refusedMove(readOnlyMove(t), framesWaiting)
	m.runOn()
	m.target.stop()
	m.target.start()
	m.target.sendCommand(m.prepareCommand())
	m.target.awaitReport("refusal to prepare", isTargetFailed)
	m.target.checkRunState(testVM, 2, "paused")
	if answer := m.source.do(m.resumeCommand()); answer.GetSourceResumed() == nil {
		t.Errorf("resume: %v", answer)
	}
	if got := m.target.do(m.releaseCommand()).GetTargetReleased(); got.GetFramesReturned() != framesWaiting || got.GetReturnError() != "" {
		t.Errorf("released: %v", got)
	}
	m.target.checkNothingLeft()
}

// Without ports nothing waits, and the instance ends at once.
func TestGivingUpWithoutPorts(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	m := f.moveOf(hosts)
	m.booting = func(epoch fleet.Epoch) *godwitv1.Instance {
		instance := booting(t, f, epoch, bootsector.Busy())
		instance.Spec.Ports = nil
		return instance
	}
	m.instance = m.booting(1)
	m.source.run(m.instance)
	m.source.awaitGuest(1)
	m.nextAsked(m.leaveUndecided())
	if !m.ask(t, m.source, 2) {
		t.Error("the target keeps its right")
	}
	if left := m.target.processes(); len(left) != 0 {
		t.Errorf("the target that gave up still runs: %v", left)
	}
}

// A target that gave up has returned its frames and ended, and its agent ends, too:
// what its host's own VMs send to the VM until a server releases it arrives all the same.
func TestReturningOutlivesTheAgent(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	hosts[1].stop()
	hosts[1].keeps = newFakeKeeper(t)
	hosts[1].start()
	m := f.newMove(hosts, inOverlay())
	other, err := f.lab.AddClient("client", lab.Port{Host: m.target.name, Device: "lan0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}})
	if err != nil {
		t.Fatal(err)
	}
	beside := blue(m.source, ownedBy(m.source))
	beside.Endpoints = []*godwitv1.Endpoint{{Name: "lan", Host: m.target.name, Device: "lan0"}}
	m.target.apply(1, beside)
	m.leaveUndecided()
	m.checkRanOn()
	m.target.checkWay("returning", testMAC, m.target.taps()[0].Name, m.source.space.Addr.String())
	back := m.source.startReceiver(m.source.taps()[0].Name)
	frames := m.target.startSender(other)
	waitFor(t, "a frame", func() bool { return back.has(int(frames.sent.Load()) - 1) })
	m.target.stop()
	without := int(frames.sent.Load()) + 1500 // the kernel looks at carriers once a second
	waitFor(t, "frames while there is no agent", func() bool { return int(frames.sent.Load()) > without })
	m.target.start()
	if !m.target.agent.find(machineKey{testVM, 2}).claimed() {
		t.Error("the next agent does not know that the host's bridges gave it the guest's frames")
	}
	sent := frames.end()
	waitFor(t, "the last frame", func() bool { return back.has(sent - 1) })
	back.check(t, sent)
	m.abort()
}
