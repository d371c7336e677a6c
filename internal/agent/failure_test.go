package agent

import (
	"context"
	"sync/atomic"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/network"
)

// Whatever keeps a target from being prepared leaves nothing, and the source is
// not touched.
func TestPrepareFails(t *testing.T) {
	m := newMove(t)
	for name, edit := range map[string]func(*godwitv1.PrepareTarget){
		"no such network": func(p *godwitv1.PrepareTarget) { p.Instance.Networks = nil },
		"no tunnel":       func(p *godwitv1.PrepareTarget) { p.Instance.Networks[0].Tunnel = 0 },
		"no such machine": func(p *godwitv1.PrepareTarget) { p.Instance.Spec.Machine = "no-such-machine" },
		"no disk":         func(p *godwitv1.PrepareTarget) { p.Instance.Spec.Disks[0].Path = "/nowhere/disk.raw" },
	} {
		t.Run(name, func(t *testing.T) {
			c := m.prepareCommand()
			edit(c.GetPrepareTarget())
			before := m.target.count(isTargetFailed)
			m.target.sendCommand(c)
			got := m.target.awaitReports(before+1, "failure", isTargetFailed)
			if failure := got.GetTargetFailed(); got.GetSubject() != testMigration || !failure.GetGone() || failure.GetCause() == "" {
				t.Errorf("told as %v", got)
			}
			m.target.checkNothingLeft()
		})
	}
	m.source.checkRunState(testVM, 1, "running")
	m.source.checkGates("untouched", network.Pass)
}

func isTargetFailed(r *godwitv1.Report) bool { return r.GetTargetFailed() != nil }
func isSourceFailed(r *godwitv1.Report) bool { return r.GetSourceFailed() != nil }

// The target lets in nobody but the source that it was told of. The source
// finds out, and runs on.
func TestWrongPeer(t *testing.T) {
	m := newMove(t)
	prepare := m.prepareCommand()
	prepare.GetPrepareTarget().Source = "h3"
	m.port = m.target.do(prepare).GetTargetPrepared().GetPort()
	m.source.sendCommand(m.copyCommand(0))
	failed := m.source.awaitReport("failure", isSourceFailed)
	if failed.GetSourceFailed().GetGone() {
		t.Errorf("told as %v", failed)
	}
	m.abort()
}

// The target's QEMU dies while it is being filled.
func TestTargetDies(t *testing.T) {
	m := newMove(t)
	m.prepare()
	m.source.sendCommand(m.copyCommand(200 * 1000))
	m.source.awaitReport("progress", func(r *godwitv1.Report) bool { return r.GetCopyProgress() != nil })
	if err := m.target.instance(testVM, 2).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if failed := m.target.awaitReport("failure", isTargetFailed); !failed.GetTargetFailed().GetGone() {
		t.Errorf("the target's end was told as %v", failed)
	}
	m.source.awaitReport("failure", isSourceFailed)
	m.abort()
}

// Somebody has removed the source's tap: the copy is not begun, since it could
// not end, and the VM runs on.
func TestCopyWithoutTap(t *testing.T) {
	m := newMove(t)
	m.prepare()
	tap := m.source.agent.find(machineKey{testVM, 1}).allPorts()[0].tap.Name()
	m.source.command("ip", "link", "delete", tap)
	m.source.sendCommand(m.copyCommand(0))
	failed := m.source.awaitReport("failure", isSourceFailed).GetSourceFailed()
	checkContains(t, failed.GetCause(), tap+": somebody has removed the device")
	checkContains(t, failed.GetHint(), "godwit vm stop")
	if failed.GetGone() {
		t.Errorf("told as %v", failed)
	}
	m.source.do(m.resumeCommand())
	m.target.do(m.releaseCommand())
	m.source.checkRunState(testVM, 1, "running")
	m.target.checkNothingLeft()
}

// The source's QEMU has died before the copy was to begin. That it has ended was
// told then, but not as the failure of a copy.
func TestSourceDiesBeforeTheCopy(t *testing.T) {
	m := newMove(t)
	m.prepare()
	if err := m.source.instance(testVM, 1).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.source.awaitReport("end", func(r *godwitv1.Report) bool { return r.GetInstance().GetState() == "exited" })
	m.source.sendCommand(m.copyCommand(0))
	if failed := m.source.awaitReport("failure", isSourceFailed); !failed.GetSourceFailed().GetGone() {
		t.Errorf("told as %v", failed)
	}
	m.target.do(m.releaseCommand())
	m.target.checkNothingLeft()
}

// Cancelled in the middle of the copy.
func TestAbortDuringCopy(t *testing.T) {
	m := newMove(t)
	m.prepare()
	m.source.sendCommand(m.copyCommand(200 * 1000))
	m.source.awaitReport("progress", func(r *godwitv1.Report) bool { return r.GetCopyProgress() != nil })
	m.abort()
	if n := m.source.count(isSourceFailed); n != 0 {
		t.Errorf("%d failures were told of a copy that was taken back", n)
	}
}

// Frames that wait at the target are QEMU's, too, until the way back is known to
// be whole: the agent may be killed meanwhile.
func TestReleaseAwaitsTheWayBackFirst(t *testing.T) {
	m := newMove(t)
	m.prepare()
	var dials atomic.Int32
	look := func() {
		dials.Add(1)
		if len(m.target.processes()) == 0 {
			t.Error("the target's QEMU has ended before the way back is whole")
		}
	}
	m.target.onDial.Store(&look)
	m.source.do(m.resumeCommand())
	release := m.releaseCommand()
	release.GetReleaseTarget().SourcePeerPort = testPeerPort
	if answer := m.target.do(release); answer.GetTargetReleased() == nil {
		t.Errorf("release: %v", answer)
	}
	if dials.Load() == 0 {
		t.Error("the way back was not looked at")
	}
	m.target.checkNothingLeft()
}

// If the agent is killed as QEMU ends, nobody has the taps any more, and what waits
// in them is gone.
func TestFramesReturnBeforeTheTargetEnds(t *testing.T) {
	m := newMove(t)
	m.prepare()
	target := m.target.agent.find(machineKey{testVM, 2})
	tap := target.allPorts()[0].tap
	const waiting = 3
	for range waiting {
		if err := tap.Sacrifice(); err != nil {
			t.Fatal(err)
		}
	}
	now, cancel := context.WithCancel(t.Context())
	cancel() // it looks once
	if tap.WaitEmpty(now) == nil {
		t.Fatal("no frames wait at the target")
	}
	ends := false
	target.mu.Lock()
	target.decided = func() { // the first that is called to end QEMU
		ends = true
		if err := tap.WaitEmpty(now); err != nil {
			t.Errorf("the target's QEMU is ended first: %v", err)
		}
	}
	target.mu.Unlock()
	answer := m.target.do(m.releaseCommand()).GetTargetReleased()
	if answer.GetFramesReturned() != waiting || answer.GetReturnError() != "" || !ends {
		t.Errorf("released: %v; a hook was called: %v", answer, ends)
	}
}
