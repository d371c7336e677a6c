package agent

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

const testMigration = "m1"

// move is one migration from h1, epoch 1, to h2, epoch 2, unless it says
// otherwise, whose server is the test.
type move struct {
	t              *testing.T
	id             string
	epoch          fleet.Epoch // of the source
	fleet          *testFleet
	source, target *testHost
	instance       *godwitv1.Instance // at the source
	sequence       uint64
	port           uint32 // where the target's QEMU listens
	booting        func(fleet.Epoch) *godwitv1.Instance
	network        *godwitv1.PortNetwork // of its port, without the tunnel
}

// newMove starts a VM at the source, whose guest never rests.
func newMove(t *testing.T) *move {
	t.Helper()
	f, hosts := newFleet(t, "h1", "h2")
	return f.newMove(hosts, inOverlay())
}

// inOverlay describes the test's port as one in the overlay.
func inOverlay() *godwitv1.PortNetwork {
	return &godwitv1.PortNetwork{Port: "net0", Vni: testVNI, Mtu: testMTU}
}

// moveOf gives a move whose VM is not described yet, nor started.
func (f *testFleet) moveOf(hosts []*testHost) *move {
	return &move{
		t: f.t, id: testMigration, epoch: 1, fleet: f, source: hosts[0], target: hosts[1], sequence: 10, network: inOverlay(),
	}
}

// back gives the move back of a VM that has moved.
func (m *move) back() *move {
	back := *m
	back.id, back.epoch, back.sequence = "m2", m.epoch+1, 100
	back.source, back.target = m.target, m.source
	return &back
}

func (f *testFleet) newMove(hosts []*testHost, in *godwitv1.PortNetwork) *move {
	f.t.Helper()
	m := f.moveOf(hosts)
	m.network = in
	m.booting = func(epoch fleet.Epoch) *godwitv1.Instance {
		instance := booting(f.t, f, epoch, bootsector.Busy())
		instance.Networks = []*godwitv1.PortNetwork{in}
		return instance
	}
	m.instance = m.booting(1)
	m.source.run(m.instance)
	m.source.awaitGuest(1)
	return m
}

func (m *move) command() *godwitv1.Command {
	m.sequence++
	return &godwitv1.Command{Subject: m.id, Epoch: uint64(m.epoch), Sequence: m.sequence}
}

func (m *move) tunnels() []*godwitv1.PortNetwork {
	in := proto.CloneOf(m.network)
	in.Tunnel = testTunnel
	return []*godwitv1.PortNetwork{in}
}

func (m *move) prepareCommand() *godwitv1.Command {
	c := m.command()
	there := m.booting(m.epoch + 1)
	there.Networks = m.tunnels()
	c.Op = &godwitv1.Command_PrepareTarget{PrepareTarget: &godwitv1.PrepareTarget{
		Instance: there, Source: m.source.name, SourceAddress: m.source.space.Addr.String(),
	}}
	return c
}

// prepare has the target made ready.
func (m *move) prepare() {
	m.t.Helper()
	m.port = m.target.do(m.prepareCommand()).GetTargetPrepared().GetPort()
	if m.port == 0 {
		m.t.Fatal("the target is not prepared")
	}
}

func (m *move) copyCommand(bandwidth fleet.BytesPerSecond) *godwitv1.Command {
	c := m.command()
	c.Op = &godwitv1.Command_StartCopy{StartCopy: &godwitv1.StartCopy{
		Vm: testVM, Target: m.target.name, TargetAddress: m.target.space.Addr.String(), TargetPort: m.port,
		Networks: m.tunnels(), BandwidthMax: uint64(bandwidth), BlackoutMaxMs: 1000,
	}}
	return c
}

// copyUntilSwitch starts the copy and waits for its end.
func (m *move) copyUntilSwitch() *godwitv1.SwitchMeasured {
	m.t.Helper()
	return m.source.do(m.copyCommand(0)).GetSwitchMeasured()
}

func (m *move) runCommand() *godwitv1.Command {
	c := m.command()
	c.Op = &godwitv1.Command_RunTarget{RunTarget: &godwitv1.RunTarget{Vm: testVM}}
	return c
}

func (m *move) releaseCommand() *godwitv1.Command {
	c := m.command()
	c.Op = &godwitv1.Command_ReleaseTarget{ReleaseTarget: &godwitv1.ReleaseTarget{
		Vm: testVM, SourceAddress: m.source.space.Addr.String(), ReturnFrames: true,
	}}
	return c
}

func (m *move) resumeCommand() *godwitv1.Command {
	c := m.command()
	c.Op = &godwitv1.Command_ResumeSource{ResumeSource: &godwitv1.ResumeSource{Vm: testVM}}
	return c
}

// abort takes the migration back, as the server does: first the source.
func (m *move) abort() {
	m.t.Helper()
	if answer := m.source.do(m.resumeCommand()); answer.GetSourceResumed() == nil {
		m.t.Errorf("resume: %v", answer)
	}
	m.source.checkRunState(testVM, 1, "running")
	m.source.checkGates("after the abort", network.Pass)
	if answer := m.target.do(m.releaseCommand()); answer.GetTargetReleased() == nil {
		m.t.Errorf("release: %v", answer)
	}
	m.target.checkNothingLeft()
}

// settle ends a migration that was committed.
func (m *move) settle() {
	m.t.Helper()
	c := m.command()
	c.Op = &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: testVM}}
	if answer := m.source.do(c); answer.GetSourceRetired() == nil {
		m.t.Errorf("retire: %v", answer)
	}
	if left := m.source.processes(); len(left) != 0 {
		m.t.Errorf("the source still runs: %v", left)
	}
	m.source.checkGates("after the source's end", network.Redirect)
	c = m.command()
	c.Op = &godwitv1.Command_ReleaseSource{ReleaseSource: &godwitv1.ReleaseSource{Vm: testVM}}
	if answer := m.source.do(c); answer.GetSourceReleased() == nil {
		m.t.Errorf("release source: %v", answer)
	}
	m.source.checkNothingLeft()
	c = m.command()
	c.Op = &godwitv1.Command_FinishTarget{FinishTarget: &godwitv1.FinishTarget{Vm: testVM}}
	if answer := m.target.do(c); answer.GetTargetFinished() == nil {
		m.t.Errorf("finish: %v", answer)
	}
	m.target.checkGates("at the end", network.Pass)
	m.target.checkRunState(testVM, m.epoch+1, "running")
}

// checkBeforeCommit looks at both hosts in the moment at which the right to run
// is asked for.
func (m *move) checkBeforeCommit() {
	m.t.Helper()
	m.source.checkGates("at the commit", network.Redirect)
	m.target.checkGates("at the commit", network.Arriving)
	for _, tap := range m.source.taps() {
		if tap.Gate.Remote != m.target.space.Addr || tap.Gate.Tunnel != testTunnel {
			m.t.Errorf("the source redirects to %v, tunnel %d", tap.Gate.Remote, tap.Gate.Tunnel)
		}
	}
	if state := m.target.runState(testVM, m.epoch+1); state.Running() {
		m.t.Error("the target runs without the right to")
	}
	if state := m.source.runState(testVM, m.epoch); state.Running() {
		m.t.Error("the source runs while the target asks for the right to")
	}
}

// grant answers every Commit with the right to run, as the answer to the
// given RunTarget.
func (m *move) grant(run *godwitv1.Command) {
	m.fleet.onCommit(func(_ context.Context, request *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		if request.GetMigration() != m.id || request.GetEpoch() != uint64(m.epoch) {
			m.t.Errorf("asked for %v", request)
		}
		m.checkBeforeCommit()
		return &godwitv1.CommitResponse{Epoch: uint64(m.epoch + 1), Sequence: run.GetSequence()}, nil
	})
}

func TestHandOver(t *testing.T) {
	m := newMove(t)
	m.prepare()
	m.target.checkGates("prepared", network.TunnelOnly)
	m.target.checkRunState(testVM, 2, "inmigrate")
	m.source.checkGates("prepared", network.Pass)
	run := m.runCommand()
	m.grant(run)
	start := m.copyCommand(0)
	m.source.sendCommand(start)
	running := m.target.awaitReport("running target", answers(run)).GetTargetRunning().GetMarks()
	m.target.checkRunState(testVM, 2, "running")
	m.target.checkGates("running", network.Settling)
	measured := m.source.awaitReport("measurement", answers(start)).GetSwitchMeasured()
	checkOrder(t, measured, running)
	stop := m.source.awaitReport("stop", isStop)
	if stop.GetSubject() != testMigration || stop.GetEpoch() != 1 || stop.GetSourceStopped().GetStoppedBy() != "agent" {
		t.Errorf("the stop was told as %v", stop)
	}
	checkWhyStopped(t, stop.GetSourceStopped().GetWhy(), start.GetStartCopy().GetBlackoutMaxMs())
	// All that comes again is answered, and nothing is done twice.
	m.target.sendCommand(run)
	m.target.awaitReports(2, "second answer", answers(run))
	m.source.sendCommand(start)
	m.source.awaitReports(2, "second answer", answers(start))
	m.source.checkGates("after repetitions", network.Redirect)
	m.target.checkGates("after repetitions", network.Settling)
	m.settle()
}

// checkWhyStopped holds what the agent says of the end of the copy against the
// rules by which it ends one.
func checkWhyStopped(t *testing.T, why *godwitv1.StopReason, blackoutMaxMs int64) {
	t.Helper()
	limits := map[migration.StopRule]float64{migration.LittleLeft: 0.5, migration.NoGain: float64(blackoutMaxMs), migration.OnlyPass: 50}
	if why.GetRule() == string(migration.OnlyPass) && why.GetLimitMs() == 20 { // of empty pages
		limits[migration.OnlyPass] = 20
	}
	rate, limit := why.GetBandwidthBytesPerSecond(), limits[migration.StopRule(why.GetRule())]
	if ms := float64(why.GetRemainingBytes()) / rate * 1000; rate <= 0 || why.GetLimitMs() != limit || ms > limit {
		t.Errorf("the reason for the stop was told as %v", why)
	}
}

func isStop(r *godwitv1.Report) bool { return r.GetSourceStopped() != nil }

// checkOrder holds the marks of both hosts, which have one clock here, against
// the order that the hand-over must have.
func checkOrder(t *testing.T, source *godwitv1.SwitchMeasured, target *godwitv1.TargetMarks) {
	t.Helper()
	s := source.GetMarks()
	marks := []struct {
		name string
		at   time.Time
	}{
		{"gate flipped", s.GetGateFlipped().AsTime()}, {"stopped", s.GetStopped().AsTime()},
		{"continued", s.GetContinued().AsTime()}, {"loaded", target.GetLoaded().AsTime()},
		{"asked", target.GetAsked().AsTime()}, {"answered", target.GetAnswered().AsTime()},
		{"resumed", target.GetResumed().AsTime()},
	}
	for i, mark := range marks[1:] {
		// QEMU's own marks are whole microseconds.
		if before := marks[i]; mark.at.Before(before.at.Add(-time.Microsecond)) {
			t.Errorf("%s at %v, before %s at %v", mark.name, mark.at, before.name, before.at)
		}
	}
	// By this the server finds out that the hosts' clocks are apart.
	if early := target.GetLoaded().AsTime().Sub(s.GetCompleted().AsTime()); early > 5*time.Millisecond {
		t.Errorf("the source had the word that it was loaded %v before it was", early)
	}
	if time.Since(marks[0].at) > time.Minute || source.GetPasses() < 1 || source.GetSentBytes() == 0 {
		t.Errorf("measured %v", source)
	}
}

// A commit that is refused leaves the target paused, and the abort restores
// everything: also what a second attempt needs.
func TestRefusedCommit(t *testing.T) {
	m := newMove(t)
	m.prepare()
	asked := make(chan struct{}, 1)
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		m.checkBeforeCommit()
		asked <- struct{}{}
		return nil, refusal()
	})
	m.copyUntilSwitch()
	receive(t, "commit", asked)
	m.target.checkRunState(testVM, 2, "paused")
	m.target.checkGates("refused", network.Arriving)
	m.abort()

	again := m.runCommand()
	m.prepare()
	m.grant(again)
	m.source.sendCommand(m.copyCommand(0))
	m.target.awaitReport("running target", answers(again))
	m.settle()
	if len(asked) != 0 {
		t.Error("the refused commit was asked for again")
	}
}

// refusal is the answer to a commit that came too late.
func refusal() error {
	return wire.ToConnect(&fleet.Error{Code: fleet.Conflict, Op: "commit", Cause: "it was aborted"})
}

func receive[T any](t *testing.T, what string, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-time.After(patience):
		t.Fatalf("no %s", what)
	}
	return value
}

// The answer to the commit gets lost; the session brings the order to run,
// and then the commit's answer comes as well. The target runs once.
func TestLostCommitAnswer(t *testing.T) {
	m := newMove(t)
	m.prepare()
	run := m.runCommand()
	asked, let := make(chan struct{}, 64), make(chan struct{})
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		asked <- struct{}{}
		select {
		case <-let:
			return &godwitv1.CommitResponse{Epoch: 2, Sequence: run.GetSequence()}, nil
		default:
			return nil, connect.NewError(connect.CodeUnavailable, nil)
		}
	})
	m.copyUntilSwitch()
	for range 2 {
		receive(t, "commit", asked) // it is asked for again
	}
	m.target.checkRunState(testVM, 2, "paused")
	resumes := countResumes(m.target.instance(testVM, 2))
	m.target.sendCommand(run)
	first := m.target.awaitReport("running target", answers(run))
	close(let)
	m.target.awaitReports(2, "answer to the commit's order", answers(run))
	m.target.checkRunState(testVM, 2, "running")
	if n := resumes(); n != 1 {
		t.Errorf("the target was resumed %d times", n)
	}
	if first.GetTargetRunning() == nil {
		t.Errorf("the order was answered with %v", first)
	}
	m.settle()
}

// countResumes counts what QEMU tells from now on of vCPUs that begin to run.
func countResumes(i *qemu.Instance) func() int {
	events := i.Subscribe()
	return func() (n int) {
		defer events.Close()
		for {
			select {
			case event := <-events.Events():
				if event.Kind == qemu.Resumed {
					n++
				}
			default:
				return n
			}
		}
	}
}

// The source's session is away while it stops the guest: the news comes in the
// next one, with the time at which it happened.
func TestSessionCutDuringCopy(t *testing.T) {
	m := newMove(t)
	m.prepare()
	asked := make(chan struct{}, 64)
	run := m.runCommand()
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		asked <- struct{}{}
		return &godwitv1.CommitResponse{Epoch: 2, Sequence: run.GetSequence()}, nil
	})
	start := m.copyCommand(200 * 1000) // slow enough to be under way
	m.source.sendCommand(start)
	m.source.awaitReport("progress", func(r *godwitv1.Report) bool { return r.GetCopyProgress() != nil })
	m.source.shut()
	receive(t, "commit", asked)
	m.target.awaitReport("running target", answers(run))
	reopened := time.Now()
	m.source.reopen()
	news := m.source.awaitReport("stop", isStop)
	if at := news.GetAt().AsTime(); at.After(reopened) {
		t.Errorf("the stop is dated %v after the session was there again", at.Sub(reopened))
	}
	if got := m.source.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "paused" || got[0].GetMigration() != testMigration {
		t.Errorf("hello: %v", got)
	}
	if m.source.do(start).GetSwitchMeasured() == nil { // asked for again, as the server does
		t.Error("the measurement is missing")
	}
	m.settle()
}
