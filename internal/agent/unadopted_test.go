package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
)

// standsAway gives a host with an instance whose monitor no agent can reach, and
// what ends that.
func standsAway(t *testing.T) (h *testHost, back func()) {
	t.Helper()
	_, hosts := newFleet(t, "h1")
	h = hosts[0]
	h.run(firmware(1))
	monitor := filepath.Join(h.agent.instanceDir(machineKey{testVM, 1}), "qmp.sock")
	h.stop()
	if err := os.Rename(monitor, monitor+".away"); err != nil {
		t.Fatal(err)
	}
	h.start()
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "running" || got[0].GetQemuVersion() != "" {
		t.Errorf("hello: %v", got)
	}
	return h, func() {
		t.Helper()
		if err := os.Rename(monitor+".away", monitor); err != nil {
			t.Fatal(err)
		}
	}
}

// An instance that can't be taken over may well run: it is not told to be gone, and
// is taken over as soon as it can be.
func TestAdoptFails(t *testing.T) {
	h, back := standsAway(t)
	start := startCommand(7, firmware(1))
	h.agent.command(t.Context(), start)
	m := h.agent.find(machineKey{testVM, 1})
	waitFor(t, "the command to be given up", func() bool { return !m.knows(start) })
	if len(h.processes()) != 1 || h.count(answers(start)) != 0 {
		t.Fatalf("processes: %v", h.processes())
	}
	back()
	told := h.awaitReport("word of what was adopted", func(r *godwitv1.Report) bool { return r.GetInstance() != nil && r.GetSequence() == 0 })
	if told.GetSubject() != testVM || told.GetInstance().GetState() != "running" || told.GetInstance().GetQemuVersion() == "" {
		t.Errorf("adopted: %v", told)
	}
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// One that can't be taken over is ended by its process alone, but not if its guest
// is to have time for it.
func TestStopWithoutMonitor(t *testing.T) {
	h, _ := standsAway(t)
	graceful := stopCommand(2, 1, time.Hour)
	got := h.do(graceful).GetInstance()
	if got.GetState() != "running" || len(h.processes()) != 1 {
		t.Errorf("stop with grace: %v, processes %v", got, h.processes())
	}
	checkContains(t, got.GetCause(), "--grace 0s")
	h.sendCommand(graceful) // the same one is tried again
	h.awaitReports(2, "second answer", answers(graceful))
	if got := h.do(stopCommand(3, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

func TestForgetWithoutMonitor(t *testing.T) {
	h, _ := standsAway(t)
	ended := forgetCommand(2, 1)
	ended.GetForgetInstance().Ended = true
	h.sendCommand(ended) // nobody can tell that it has
	h.sendCommand(startCommand(7, firmware(1)))
	h.sendCommand(forgetCommand(3, 1))
	waitFor(t, "the end of the instance", func() bool { return len(h.agent.all()) == 0 })
	h.checkNothingLeft()
}

// What a server holds to be stale may be so only by what can't be read now, or is
// known here alone.
func TestForgetSparesWhatIsNotAdopted(t *testing.T) {
	for name, harm := range map[string]func(dir string, r record) error{
		"its record can't be read": func(dir string, _ record) error {
			return os.WriteFile(filepath.Join(dir, recordFile), []byte("{"), 0o600)
		},
		"it runs on": func(dir string, r record) error {
			r.Role, r.Migration = ranOn, testMigration
			return errors.Join(writeRecord(dir, r), os.Rename(filepath.Join(dir, "qmp.sock"), filepath.Join(dir, "away")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, hosts := newFleet(t, "h1")
			h := hosts[0]
			h.run(firmware(1))
			m := h.agent.find(machineKey{testVM, 1})
			h.stop()
			if err := harm(m.dir, m.record); err != nil {
				t.Fatal(err)
			}
			h.start()
			forget := forgetCommand(2, 1)
			forget.GetForgetInstance().Uid = testUID
			h.agent.command(t.Context(), forget)
			m = h.agent.find(machineKey{testVM, 1})
			waitFor(t, "the order to be given up", func() bool { return !m.knows(forget) })
			if len(h.processes()) != 1 || h.agent.find(m.key) != m {
				t.Errorf("it is removed")
			}
			if got := h.do(stopCommand(3, 1, 0)).GetInstance().GetState(); got != "exited" || len(h.processes()) != 0 {
				t.Errorf("stop: %q, processes %v", got, h.processes())
			}
		})
	}
}

// One that ends before it could be taken over is told of.
func TestEndWithoutMonitor(t *testing.T) {
	h, _ := standsAway(t)
	if err := qemu.Kill(t.Context(), h.agent.instanceDir(machineKey{testVM, 1}), "first"); err != nil {
		t.Fatal(err)
	}
	if got := h.awaitReport("end", ended).GetInstance(); got.GetCause() == "" || got.GetEpoch() != 1 {
		t.Errorf("told as %v", got)
	}
	h.do(stopCommand(2, 1, 0))
	h.checkNothingLeft()
}

// One whose record can't be read, too, can be stopped.
func TestStopWithoutRecord(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	h.stop()
	path := filepath.Join(h.agent.instanceDir(machineKey{testVM, 1}), recordFile)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" || len(h.processes()) != 0 || len(h.agent.all()) != 0 {
		t.Errorf("stop: %q, processes %v", got, h.processes())
	}
}

// A guest that QEMU can't let run on is told of as it is, and can be stopped.
func TestAdoptHalted(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	monitor := h.instance(testVM, 1).Monitor()
	if err := monitor.Execute(t.Context(), "set-action", map[string]string{"reboot": "shutdown", "shutdown": "pause"}, nil); err != nil {
		t.Fatal(err)
	}
	if err := monitor.Execute(t.Context(), "system_reset", nil, nil); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the guest to stand still", func() bool { return h.runState(testVM, 1) == "shutdown" })
	h.stop()
	h.start()
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "paused" || !strings.Contains(got[0].GetCause(), "shutdown") || got[0].GetQemuVersion() == "" {
		t.Errorf("hello: %v", got)
	}
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// An instance that is taken over late is taken up at once, however many
// commands wait behind.
func TestAdoptLateWithAFullQueue(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	dir := h.agent.instanceDir(machineKey{testVM, 1})
	given := h.agent.find(machineKey{testVM, 1}).record
	monitor := filepath.Join(dir, "qmp.sock")
	h.stop()
	given.Role, given.Migration = refused, "m1"
	if err := errors.Join(writeRecord(dir, given), os.Rename(monitor, monitor+".away")); err != nil {
		t.Fatal(err)
	}
	h.start()
	m := h.agent.find(machineKey{testVM, 1})
	taken, full, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	m.work <- func() {
		close(taken)
		<-full
		done <- m.adoptAgain()
	}
	<-taken
	if err := os.Rename(monitor+".away", monitor); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a full queue", func() bool {
		select {
		case m.work <- func() {}:
			return false
		default:
			return len(m.work) == machineQueue
		}
	})
	close(full)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the machine waits for itself")
	}
	waitFor(t, "the end of what has given up", func() bool { return len(h.processes()) == 0 })
}

// A source that is given another epoch, and can't be taken over at that at once,
// stays one that may run: the order comes again, and is carried out then.
func TestRenumberFails(t *testing.T) {
	m := newMove(t)
	m.prepare()
	h := m.source
	inTheWay := filepath.Join(h.agent.instanceDir(machineKey{testVM, 3}), "full")
	if err := os.MkdirAll(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	resume := m.resumeCommand()
	resume.GetResumeSource().NewEpoch = 3
	h.sendCommand(resume)
	if failed := h.awaitReport("failure", isSourceFailed).GetSourceFailed(); failed.GetGone() {
		t.Errorf("told as %v", failed)
	}
	h.agent.command(t.Context(), resume)
	waitFor(t, "the order to be given up", func() bool { return !h.agent.find(machineKey{testVM, 3}).knows(resume) })
	h.shut()
	h.reopen()
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetEpoch() != 3 || got[0].GetState() != "running" {
		t.Errorf("hello: %v", got)
	}
	if err := os.RemoveAll(filepath.Dir(inTheWay)); err != nil {
		t.Fatal(err)
	}
	if answer := h.do(resume); answer.GetSourceResumed() == nil {
		t.Errorf("resume: %v", answer)
	}
	if n := h.count(isSourceFailed); n != 1 {
		t.Errorf("%d failures were told", n)
	}
	h.checkRunState(testVM, 3, "running")
	h.checkGates("at its new epoch", network.Pass)
	m.target.do(m.releaseCommand())
	h.do(stopCommand(99, 3, 0))
	h.checkNothingLeft()
}
