package agent

import (
	"context"
	"os"
	"testing"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pki"
)

// switchMax is short, since nobody here decides in time, but leaves a busy
// machine the time to load the state before.
const switchMax = 4 * time.Second

// leaveUndecided copies until both hosts have everything, and answers no commit.
// What is asked for the commit waits in the channel.
func (m *move) leaveUndecided() (asked chan chan *godwitv1.CommitResponse) {
	m.t.Helper()
	asked = make(chan chan *godwitv1.CommitResponse, 8)
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		answer := make(chan *godwitv1.CommitResponse, 1)
		asked <- answer
		select {
		case response := <-answer:
			return response, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	m.prepare()
	c := m.copyCommand(0)
	c.GetStartCopy().TargetPeerPort = testPeerPort
	c.GetStartCopy().SwitchMaxMs = switchMax.Milliseconds()
	m.source.sendCommand(c)
	return asked
}

// nextAsked waits until the target asks for the commit.
func (m *move) nextAsked(asked chan chan *godwitv1.CommitResponse) chan *godwitv1.CommitResponse {
	m.t.Helper()
	select {
	case answer := <-asked:
		return answer
	case <-time.After(patience):
		m.t.Fatal("the target does not ask for the commit")
		return nil
	}
}

func ranOnReport(r *godwitv1.Report) bool   { return r.GetSourceRanOn() != nil }
func refusedReport(r *godwitv1.Report) bool { return r.GetTargetRefused() != nil }

// checkRanOn looks at both hosts after the source ran on by itself.
func (m *move) checkRanOn() {
	m.t.Helper()
	m.source.awaitReport("word that it runs on", ranOnReport)
	m.target.awaitReport("word that it gave up", refusedReport)
	m.source.checkRunState(testVM, 1, "running")
	m.source.checkGates("running on", network.Pass)
	m.awaitReturn()
}

// awaitReturn waits until the target has returned the frames that waited there, and
// then has ended.
func (m *move) awaitReturn() {
	m.t.Helper()
	waitFor(m.t, "the end of the target that gave up", func() bool { return len(m.target.processes()) == 0 })
	taps := m.target.taps()
	if len(taps) != 1 || taps[0].Gate.Mode != network.Returning || taps[0].Gate.Remote != m.source.space.Addr {
		m.t.Errorf("the target has ended before its frames were returned: %+v", taps)
	}
}

// Nobody answers the commit: the hosts end it between themselves, and no answer
// that comes later lets the target run.
func TestHostsEndWhatServersLeave(t *testing.T) {
	m := newMove(t)
	asked := m.leaveUndecided()
	answer := m.nextAsked(asked)
	m.checkRanOn()
	answer <- &godwitv1.CommitResponse{Epoch: 2, Sequence: 999}
	run := m.runCommand()
	if got := m.target.do(run); got.GetTargetRefused() == nil {
		t.Errorf("told to run after it gave up: %v", got)
	}
	// A source that runs is not ended by a word that supposes that it does not.
	retire := m.command()
	retire.Op = &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: testVM}}
	m.source.sendCommand(retire)
	m.source.awaitReport("refusal to retire", func(r *godwitv1.Report) bool { return r.GetSourceFailed() != nil })
	m.source.awaitGuest(1)
	m.abort()
	m.source.awaitGuest(1)
}

// The commit was made, and its answer lost: the VM is given back to the source at
// an epoch of its own.
func TestRenumber(t *testing.T) {
	m := newMove(t)
	m.leaveUndecided()
	m.checkRanOn()
	pid := m.source.instance(testVM, 1).PID()
	resume := m.resumeCommand()
	resume.GetResumeSource().NewEpoch = 3
	if got := m.source.do(resume); got.GetSourceResumed() == nil {
		t.Fatalf("resume: %v", got)
	}
	if got := m.source.instance(testVM, 3).PID(); got != pid {
		t.Errorf("epoch 3 is process %d, it was %d", got, pid)
	}
	m.source.checkRunState(testVM, 3, "running")
	m.source.awaitGuest(3)
	if taps := m.source.taps(); len(taps) != 1 || taps[0].Gate.Mode != network.Pass || taps[0].Gate.Epoch != 3 {
		t.Errorf("taps: %+v", taps)
	}
	// Nobody heard the answer, and it is asked for again, by another agent too.
	m.source.stop()
	m.source.start()
	if got := m.source.hello().GetInstances(); len(got) != 1 || got[0].GetEpoch() != 3 || got[0].GetState() != "running" {
		t.Errorf("hello: %v", got)
	}
	again := m.resumeCommand()
	again.GetResumeSource().NewEpoch = 3
	if got := m.source.do(again); got.GetSourceResumed() == nil {
		t.Errorf("resume again: %v", got)
	}
	m.source.checkRunState(testVM, 3, "running")
	if got := m.target.do(m.releaseCommand()).GetTargetReleased(); got == nil {
		t.Error("the target was not released")
	}
	m.target.checkNothingLeft()
	if got := m.source.do(stopCommand(50, 3, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	m.source.checkNothingLeft()
}

// A promise outlives the agent that made it, on both sides.
func TestPromisesOutliveAgents(t *testing.T) {
	m := newMove(t)
	m.leaveUndecided()
	m.checkRanOn()
	m.source.stop()
	m.target.stop()
	m.source.start()
	m.target.start()
	m.source.awaitReports(2, "word of the second agent", ranOnReport)
	m.target.awaitReports(2, "word of the second agent", refusedReport)
	m.source.checkRunState(testVM, 1, "running")
	if got := m.target.do(m.runCommand()); got.GetTargetRefused() == nil {
		t.Errorf("told to run after it gave up: %v", got)
	}
	m.abort()
}

// The source's agent dies in the switch, and another comes when no server is
// there to tell it anything.
func TestNextAgentAsks(t *testing.T) {
	m := newMove(t)
	asked := m.leaveUndecided()
	m.nextAsked(asked)
	m.source.stop()
	m.source.start()
	m.checkRanOn()
	m.abort()
}

// A target that has the right keeps it, and the source stays as it is.
func TestNoGivingUpAfterTheCommit(t *testing.T) {
	m := newMove(t)
	asked := m.leaveUndecided()
	run := m.runCommand()
	m.nextAsked(asked) <- &godwitv1.CommitResponse{Epoch: 2, Sequence: run.GetSequence()}
	m.target.awaitReport("word that it runs", func(r *godwitv1.Report) bool { return r.GetTargetRunning() != nil })
	if m.ask(t, m.source, 2) {
		t.Error("a target that runs gave up")
	}
	m.target.checkRunState(testVM, 2, "running")
	m.settle()
	// Its source is gone, and the instance no migration's any more.
	if m.ask(t, m.source, 2) {
		t.Error("a target that has settled gave up")
	}
	// What is not here may have run, and moved on.
	if m.ask(t, m.source, 7) {
		t.Error("an instance that is not here gave up")
	}
}

// Only the source of a migration may ask.
func TestOnlyTheSourceAsks(t *testing.T) {
	m := newMove(t)
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	m.prepare()
	for name, tt := range map[string]struct {
		caller    pki.Identity
		migration string
		want      fleet.Code
	}{
		"another host":      {pki.Identity{Kind: pki.Host, Name: "h3"}, testMigration, fleet.Denied},
		"no host":           {pki.Identity{Kind: pki.Admin, Name: "admin"}, testMigration, fleet.Denied},
		"another migration": {pki.Identity{Kind: pki.Host, Name: "h1"}, "m2", fleet.Conflict},
	} {
		_, err := m.askAs(m.fleet.keeper(tt.caller), tt.migration, 2)
		if fleet.CodeOf(err) != tt.want {
			t.Errorf("%s: %v, want code %s", name, err, tt.want)
		}
	}
	m.target.checkRunState(testVM, 2, "inmigrate")
}

// ask asks the target to give up, as the source does.
func (m *move) ask(t *testing.T, by *testHost, epoch uint64) bool {
	t.Helper()
	answer, err := m.askAs(m.fleet.keeper(pki.Identity{Kind: pki.Host, Name: by.name}), testMigration, epoch)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("ask: %v", err)
	}
	return answer.GetRefused()
}

func (m *move) askAs(keeper *pki.Keeper, migration string, epoch uint64) (*godwitv1.GiveUpResponse, error) {
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	return m.targetFor(keeper).GiveUp(ctx, &godwitv1.GiveUpRequest{Migration: migration, Vm: testVM, Epoch: epoch})
}

// targetFor is a client of the target's agent for somebody.
func (m *move) targetFor(keeper *pki.Keeper) *client.Peer {
	m.t.Helper()
	peer, err := client.DialPeer(client.Config{
		Server: "https://" + peerAddress(m.target.space.Addr.String(), testPeerPort), Dial: m.source.agent.config.Peers.Dial,
		TLS: keeper.ClientConfig(pki.Expect{Kind: pki.Host, Name: m.target.name}),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(peer.Close)
	return peer
}

// A target whose QEMU ended while no agent was there is told to run: it says
// that it is gone, and that it never ran.
func TestRunWithoutAnInstance(t *testing.T) {
	m := newMove(t)
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	m.prepare()
	process, err := os.FindProcess(m.target.instance(testVM, 2).PID())
	if err != nil {
		t.Fatal(err)
	}
	m.target.stop()
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "QEMU's end", func() bool { return len(m.target.processes()) == 0 })
	m.target.start()
	m.target.sendCommand(m.runCommand())
	failed := m.target.awaitReport("word that it is gone", func(r *godwitv1.Report) bool { return r.GetTargetFailed() != nil })
	if got := failed.GetTargetFailed(); !got.GetGone() || !got.GetUnrun() {
		t.Errorf("it says %v", got)
	}
	m.abort()
}

// A target's agent dies between opening the gate and writing down that the guest
// runs. The next one does not say that the instance only waits.
func TestOpenedTargetIsSaidToRun(t *testing.T) {
	m := newMove(t)
	m.prepare()
	again := func() string {
		m.target.stop()
		m.target.start()
		instances := m.target.hello().GetInstances()
		if len(instances) != 1 {
			t.Fatalf("hello tells of %v", instances)
		}
		return instances[0].GetState()
	}
	if got := again(); got != "incoming" {
		t.Errorf("behind its gate it is said to be %s", got)
	}
	if err := m.target.agent.find(machineKey{testVM, 2}).pointGates(network.Returning, m.source.space.Addr); err != nil {
		t.Fatal(err)
	}
	if got := again(); got != "incoming" {
		t.Errorf("while it returns frames it is said to be %s", got)
	}
	if err := m.target.agent.find(machineKey{testVM, 2}).setMode(network.Settling); err != nil {
		t.Fatal(err)
	}
	if got := again(); got != "running" {
		t.Errorf("with its gate open it is said to be %s", got)
	}
}
