package agent

import (
	"context"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/imagelock"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/qmp"
)

// lockedMove is a move whose commit is won while the source's QEMU, of which the agent
// is dead, is stopped in the middle of its work and has the lock of its image again: as
// after a link that broke when everything was sent.
func lockedMove(t *testing.T) (m *move, run *godwitv1.Command, holder *qemu.Instance) {
	t.Helper()
	m = newMove(t)
	m.prepare()
	run = m.runCommand()
	decided := make(chan struct{})
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		select {
		case <-decided:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return &godwitv1.CommitResponse{Epoch: 2, Sequence: run.GetSequence()}, nil
	})
	start := m.copyCommand(0)
	start.GetStartCopy().TargetPeerPort, start.GetStartCopy().SwitchMaxMs = testPeerPort, 6000
	m.source.sendCommand(start)
	m.source.awaitReport("measurement", answers(start))
	holder = m.source.instance(testVM, 1)
	m.source.stop()
	takeLock(t, filepath.Join(m.source.agent.instanceDir(machineKey{testVM, 1}), "qmp.sock"))
	if err := unix.Kill(holder.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(holder.PID(), unix.SIGCONT) }) // for whoever ends it
	close(decided)
	return m, run, holder
}

// takeLock has a QEMU that has sent everything open its images again, and stand still.
func takeLock(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	monitor, err := qmp.Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	if err := qmp.Cont(ctx, monitor); err != nil {
		t.Fatal(err)
	}
	if err := qmp.Stop(ctx, monitor); err != nil {
		t.Fatal(err)
	}
}

func isLocked(r *godwitv1.Report) bool { return r.GetTargetFailed().GetLockedDisk() == "root" }

// A target whose image is locked by a source that nobody reaches waits, and says for
// what; when the source is fenced it runs, and not before.
func TestTargetWaitsForTheLock(t *testing.T) {
	m, run, holder := lockedMove(t)
	waits := m.target.awaitReport("word of the lock", isLocked).GetTargetFailed()
	checkContains(t, waits.GetCause(), "the image of disk root, ")
	checkContains(t, waits.GetCause(), "by the instance on h1")
	m.target.checkGates("while it waits", network.Arriving)
	m.target.checkRunState(testVM, 2, "paused")
	m.target.sendCommand(run) // as the server does again and again
	m.target.awaitReports(2, "word of the lock again", isLocked)
	m.target.checkGates("while it waits again", network.Arriving)
	m.target.checkRunState(testVM, 2, "paused")
	if err := unix.Kill(holder.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	path := m.instance.GetSpec().GetDisks()[0].GetPath()
	waitFor(t, "the end of its lock", func() bool { // with the last thread, a moment after the process can be seen to end
		taken, err := imagelock.Taken(path, m.target.instance(testVM, 2).PID())
		return err == nil && !taken
	})
	if answer := m.target.do(run); answer.GetTargetRunning() == nil {
		t.Errorf("with the source fenced: %v", answer)
	}
	m.target.checkRunState(testVM, 2, "running")
	m.target.checkGates("running", network.Settling)
}

// The source's agent is back while the target waits: that never ran and gives up, so
// the guest goes on where everything of it is.
func TestSourceIsBackWithTheLock(t *testing.T) {
	m, _, holder := lockedMove(t)
	m.target.awaitReport("word of the lock", isLocked)
	if err := unix.Kill(holder.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.source.start()
	m.target.awaitReport("the target's refusal", func(r *godwitv1.Report) bool { return r.GetTargetRefused() != nil })
	m.source.awaitReport("that the source runs on", func(r *godwitv1.Report) bool { return r.GetSourceRanOn() != nil })
	m.source.checkRunState(testVM, 1, "running")
	m.source.checkGates("after the target's refusal", network.Pass)
	if left := m.target.processes(); len(left) > 0 {
		t.Errorf("the target's instance is left: %v", left)
	}
}
