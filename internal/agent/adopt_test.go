package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/qemu"
)

// An agent that ends and one that comes after it change nothing for a VM.
func TestAdopt(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, busy))
	h.awaitGuest(1)
	pid, tap := h.instance(testVM, 1).PID(), h.taps()[0]
	h.stop()
	h.start()
	if got := h.instance(testVM, 1).PID(); got != pid {
		t.Errorf("adopted process %d, it was %d", got, pid)
	}
	h.checkRunState(testVM, 1, "running")
	if got := h.taps(); len(got) != 1 || got[0].Name != tap.Name || got[0].Gate != tap.Gate || !got[0].Open {
		t.Errorf("taps are %+v, want %+v", got, tap)
	}
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "running" || got[0].GetUid() != testUID || got[0].GetEpoch() != 1 {
		t.Errorf("hello: %v", got)
	}
	// A start that comes again finds it running.
	if got := h.do(startCommand(1, firmware(1))).GetInstance().GetState(); got != "running" {
		t.Errorf("start: %q", got)
	}
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// endedBetweenAgents gives a host whose instance has ended while no agent ran
// there.
func endedBetweenAgents(t *testing.T) *testHost {
	t.Helper()
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	process, err := os.FindProcess(h.instance(testVM, 1).PID())
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "QEMU's end", func() bool { return len(h.processes()) == 0 })
	h.start()
	return h
}

// What ended while there was no agent is told at the first hello, and can be
// removed.
func TestAdoptEnded(t *testing.T) {
	h := endedBetweenAgents(t)
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "exited" {
		t.Errorf("hello: %v", got)
	}
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// A start that is asked for again, because an agent's end cut it off, makes use
// of nothing that it left.
func TestStartAfterHalfAStart(t *testing.T) {
	h := endedBetweenAgents(t)
	if got := h.do(startCommand(7, firmware(1))).GetInstance(); got.GetState() != "running" {
		t.Errorf("start: %v", got)
	}
	h.checkGates("after the second start", network.Pass)
	if got := h.do(stopCommand(8, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// Agents that died in the middle of a start leave folders of different kinds.
func TestAdoptHalfMade(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.stop()
	empty := h.agent.instanceDir(machineKey{"web0", 1})
	recorded := h.agent.instanceDir(machineKey{testVM, 1})
	broken := h.agent.instanceDir(machineKey{"web2", 1})
	for _, dir := range []string{empty, recorded, broken} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// Its tap was never made.
	ports := []portRecord{{Name: "net0", Network: testNetwork, MAC: testMAC, Tap: tapName(machineKey{testVM, 1}, "net0"), Queues: 1, MTU: testMTU}}
	if err := writeRecord(recorded, record{VM: testVM, UID: testUID, Epoch: 1, Role: pledge.Alone, Ports: ports}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, recordFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	if _, err := os.Stat(empty); err == nil {
		t.Error("the folder without a record is left")
	}
	if _, err := os.Stat(broken); err != nil {
		t.Errorf("what is not understood must stay: %v", err)
	}
	said := h.hello().GetInstances()
	slices.SortFunc(said, func(a, b *godwitv1.InstanceReport) int { return strings.Compare(a.GetVm(), b.GetVm()) })
	if len(said) != 2 || said[0].GetVm() != testVM || said[0].GetState() != "exited" || said[1].GetVm() != "web2" || said[1].GetState() != "exited" {
		t.Errorf("hello: %v", said)
	}
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	forget := forgetCommand(3, 1)
	forget.GetForgetInstance().Vm = "web2"
	h.sendCommand(forget)
	waitFor(t, "the end of the folder without a record", func() bool { return len(h.agent.all()) == 0 })
	h.checkNothingLeft()
}

// An instance whose record can't be read is not said to be absent, nor does another
// get its folder.
func TestRecordUnreadable(t *testing.T) {
	for name, harm := range map[string]func(path string) error{
		"broken":  func(path string) error { return os.WriteFile(path, []byte("{"), 0o600) },
		"missing": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			_, hosts := newFleet(t, "h1")
			h := hosts[0]
			h.run(firmware(1))
			h.stop()
			path := filepath.Join(h.agent.instanceDir(machineKey{testVM, 1}), recordFile)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := harm(path); err != nil {
				t.Fatal(err)
			}
			h.start()
			if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "running" || got[0].GetUid() != "" || got[0].GetEpoch() != 1 {
				t.Errorf("hello: %v", got)
			}
			retire := &godwitv1.Command{
				Subject: testMigration, Epoch: 1, Sequence: 5, Op: &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: testVM}},
			}
			h.agent.command(t.Context(), retire)
			h.agent.command(t.Context(), startCommand(7, firmware(1)))
			m := h.agent.find(machineKey{testVM, 1})
			waitFor(t, "the commands to be given up", func() bool { return !m.knows(retire) && !m.knows(startCommand(7, firmware(1))) })
			if len(h.processes()) != 1 {
				t.Errorf("processes: %v", h.processes())
			}
			if err := os.WriteFile(path, good, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := h.do(startCommand(8, firmware(1))).GetInstance(); got.GetState() != "running" || got.GetUid() != testUID {
				t.Errorf("when it can be read: %v", got)
			}
			if got := h.do(stopCommand(9, 1, 0)).GetInstance().GetState(); got != "exited" {
				t.Errorf("stop: %q", got)
			}
			if n := h.count(answers(retire)) + h.count(answers(startCommand(7, firmware(1)))); n != 0 {
				t.Errorf("%d answers to what was not carried out", n)
			}
			h.checkNothingLeft()
		})
	}
}

// knows tells whether a command is begun, or answered.
func (m *machine) knows(command *godwitv1.Command) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, known := m.told.Begin(command, "")
	if !known {
		m.told.Forget(command)
	}
	return known
}

// The target's agent is replaced while it waits for the commit: the next one
// asks for it, runs the target, and settles.
func TestAdoptTargetBeforeCommit(t *testing.T) {
	m := newMove(t)
	m.prepare()
	asked := make(chan struct{}, 1024)
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		asked <- struct{}{}
		return nil, refusal()
	})
	m.copyUntilSwitch()
	receive(t, "commit", asked)
	m.target.stop()
	run := m.runCommand()
	m.grant(run)
	m.target.start()
	running := m.target.awaitReport("running target", answers(run)).GetTargetRunning()
	if running == nil {
		t.Error("the target does not run")
	}
	// The next agent saw neither the loading nor who asked before it.
	if marks := running.GetMarks(); !proto.Equal(marks.GetLoaded(), marks.GetAsked()) {
		t.Errorf("what the next agent notes late does not show it: %v", marks)
	}
	m.target.checkGates("running", network.Settling)
	m.target.checkRunState(testVM, 2, "running")
	m.settle()
}

// A command that has waited until a session began may be older than the commit,
// and the agent that gets it newer.
func TestOldPreparationAfterTheCommit(t *testing.T) {
	m := newMove(t)
	old := m.prepareCommand()
	m.port = m.target.do(old).GetTargetPrepared().GetPort()
	run := m.runCommand()
	m.grant(run)
	m.copyUntilSwitch()
	m.target.awaitReport("running target", answers(run))
	m.target.stop()
	m.target.start()
	m.target.sendCommand(old)
	m.target.sendCommand(run) // carried out after it
	m.target.awaitReports(2, "running target", answers(run))
	m.target.checkGates("prepared again", network.Settling)
	m.target.checkRunState(testVM, 2, "running")
	m.settle()
}

// The source's agent is replaced while the target waits: the order to resume
// is carried out by the next one.
func TestAdoptSourceThenAbort(t *testing.T) {
	m := newMove(t)
	m.prepare()
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		return nil, refusal()
	})
	m.copyUntilSwitch()
	m.source.stop()
	m.source.start()
	m.source.checkGates("adopted", network.Redirect)
	if got := m.source.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "paused" || got[0].GetMigration() != testMigration {
		t.Errorf("hello: %v", got)
	}
	m.abort()
}

// The source's agent is replaced when its QEMU has sent everything: the next
// one, asked for the copy again, says that it is done.
func TestAdoptSourceThatHasSent(t *testing.T) {
	m := newMove(t)
	m.prepare()
	decide := make(chan struct{})
	run := m.runCommand()
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		select {
		case <-decide:
			return &godwitv1.CommitResponse{Epoch: 2, Sequence: run.GetSequence()}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	start := m.copyCommand(0)
	m.source.sendCommand(start)
	m.source.awaitReport("stop", isStop)
	waitFor(t, "the source to have sent everything", func() bool { return m.source.runState(testVM, 1).Sent() })
	m.source.stop()
	m.source.start()
	before := m.source.count(answers(start)) // the first agent may have said it, too
	m.source.sendCommand(start)
	measured := m.source.awaitReports(before+1, "measurement", answers(start)).GetSwitchMeasured()
	if measured.GetMarks().GetStopped() == nil || measured.GetSentBytes() == 0 {
		t.Errorf("measured %v", measured)
	}
	close(decide)
	m.target.awaitReport("running target", answers(run))
	m.settle()
}

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
