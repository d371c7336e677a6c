package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pledge"
)

// An agent that ends and one that comes after it change nothing for a VM.
func TestAdopt(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Busy()))
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
