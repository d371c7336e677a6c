package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

func (f *testFleet) migrate(vm, target string) (*godwitv1.Migration, error) {
	response, err := f.moves.Create(f.t.Context(), &godwitv1.CreateMigrationRequest{Vm: vm, Target: target})
	return response.GetMigration(), err
}

// One migration as two agents see it, with every command and record on the
// way.
func TestMigration(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	h3 := f.join("h3", func(o *agentOptions) { o.noAcks = true })
	network := f.network("blue", "10.20.0.0/24")
	vm := f.running(h1, "web1", "blue")
	f.running(h3, "web3", "blue")
	response, err := f.moves.Create(t.Context(), &godwitv1.CreateMigrationRequest{
		Vm: "web1", Policy: &godwitv1.MigrationPolicy{BandwidthMax: 5e6, BlackoutMaxMs: 200},
	})
	if err != nil {
		t.Fatal(describe(err))
	}
	m := response.GetMigration()
	// h3 has a VM already.
	if m.GetSource() != "h1" || m.GetTarget() != "h2" || m.GetEpoch() != 1 || m.GetReason() != "by hand" {
		t.Errorf("created %v", m)
	}
	if r := m.GetRefused(); len(r) != 1 || r[0].GetHost() != "h1" || !slices.Equal(r[0].GetWhy(), []string{"it is where the VM is now"}) {
		t.Errorf("refused hosts %v", r)
	}
	if c := m.GetChoice(); c.GetNamed() || c.GetWhy() == "" || len(c.GetOthers()) != 1 || c.GetOthers()[0].GetHost() != "h3" || c.GetOthers()[0].GetWhy() == "" {
		t.Errorf("the choice is told as %v", c)
	}
	fl := f.follow(h1, h2, "web1", m.GetId())
	prepare := fl.next(h2, "prepare_target")
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 1}, fl.id, "h1", "h2")
	tunnel := checkPrepare(t, prepare, vm, network)
	fl.say(h2, prepare, usualAnswer("prepare_target"))
	start := fl.next(h1, "start_copy")
	ask := start.GetStartCopy()
	if ask.GetVm() != "web1" || ask.GetTarget() != "h2" || ask.GetTargetAddress() != "10.9.0.2" || ask.GetTargetPort() != testPort ||
		ask.GetBandwidthMax() != 5e6 || ask.GetBlackoutMaxMs() != 200 || start.GetEpoch() != 1 || start.GetSequence() <= prepare.GetSequence() {
		t.Errorf("start copy: %v", start)
	}
	if n := ask.GetNetworks(); len(n) != 1 || n[0].GetPort() != "net0" || n[0].GetTunnel() != tunnel {
		t.Errorf("tunnels of the copy %v, want %d", n, tunnel)
	}
	fl.stopSource()
	begin := time.Now()
	fl.say(h1, start, switchMeasured(begin))
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 1}, fl.id, "h1", "h2")
	answer, err := fl.commit("h2", 1)
	if err != nil || answer.GetEpoch() != 2 {
		t.Fatalf("commit: %v, %v", answer, err)
	}
	f.checkPlace("web1", fleet.Owner{Host: "h2", Epoch: 2}, fl.id, "h1", "h2")
	checkOneTransaction(t, f, fl)
	run := fl.next(h2, "run_target")
	if run.GetSequence() != answer.GetSequence() || run.GetRunTarget().GetVm() != "web1" || run.GetEpoch() != 1 {
		t.Errorf("run %v, the commit said sequence %d", run, answer.GetSequence())
	}
	fl.say(h2, run, targetRunning(begin))
	fl.answer(h1, "retire_source")
	fl.awaitEvent(migration.SourceRetired)
	for _, agent := range []*fakeAgent{h1, h2} {
		agent.awaitMap("the new place", func(m *godwitv1.AddressMap) bool { return entryOf(m, "web1").GetHost() == "h2" })
	}
	// The forwarding goes on until the last host knows the new place.
	late := h3.awaitMap("the new place", func(m *godwitv1.AddressMap) bool { return entryOf(m, "web1").GetHost() == "h2" })
	if fl.record().AddressesKnown {
		t.Error("the addresses count as known although h3 has not applied them")
	}
	h3.ack(late.GetVersion())
	fl.awaitEvent(migration.AddressesKnown)
	known := time.Now()
	fl.answer(h1, "release_source")
	if waited := time.Since(known); waited < migration.DefaultPolicy(0).Grace-100*time.Millisecond {
		t.Errorf("the forwarding was ended %v after the addresses were known", waited)
	}
	fl.answer(h2, "finish_target")
	end := fl.await(migration.Succeeded)
	checkSuccess(t, end)
	checkTold(t, end)
	fl.atTarget(t)
	if vm := f.vm("web1"); vm.GetPhase() != "running" {
		t.Errorf("it is %s", vm.GetPhase())
	}
	if pending := fl.record().Pending; len(pending) != 0 {
		t.Errorf("pending at the end: %v", pending)
	}
}

// checkTold demands that whatever the record knows is in the message.
func checkTold(t *testing.T, m *godwitv1.Migration) {
	t.Helper()
	origins := map[string]string{}
	for _, limit := range m.GetLimits() {
		origins[limit.GetName()] = limit.GetFrom()
	}
	if origins["bandwidth"] != "the request" || origins["blackout"] != "the request" || origins["prepare"] != "default" {
		t.Errorf("origins %v", origins)
	}
	story := m.GetStory()
	if first := story[0]; len(first.GetOrdered()) != 1 || first.GetOrdered()[0].GetKind() != string(migration.PrepareTarget) ||
		first.GetOrdered()[0].GetHost() != "h2" || first.GetDeadlineMeans() == "" {
		t.Errorf("the first line is %v", first)
	}
	prepared := func(line *godwitv1.StoryEntry) bool { return line.GetEvent() == string(migration.TargetPrepared) }
	if i := slices.IndexFunc(story, prepared); i < 1 || story[i].GetAnswers() != story[0].GetOrdered()[0].GetSequence() {
		t.Errorf("no line answers the first: %v", story)
	}
	if s, g := m.GetSourceMarks(), m.GetTargetMarks(); s.GetStopped() == nil || s.GetContinued() == nil || g.GetLoaded() == nil || g.GetResumed() == nil {
		t.Errorf("marks %v and %v", s, g)
	}
	if !m.GetCommitted() || !m.GetTargetRuns() || len(m.GetPending()) != 0 || m.GetPort() != testPort || len(m.GetTunnels()) != 1 || m.GetUid() == "" {
		t.Errorf("the end is told as %v", m)
	}
}

// checkPrepare gives the tunnel of the one port.
func checkPrepare(t *testing.T, command *godwitv1.Command, vm *godwitv1.VM, network *godwitv1.Network) uint32 {
	t.Helper()
	prepare := command.GetPrepareTarget()
	instance := prepare.GetInstance()
	if prepare.GetSource() != "h1" || prepare.GetSourceAddress() != "10.9.0.1" || command.GetEpoch() != 1 ||
		instance.GetVm() != "web1" || instance.GetUid() != vm.GetUid() || instance.GetEpoch() != 2 ||
		instance.GetSpec().GetMachine() != "pc-q35-10.0" || instance.GetSpec().GetPorts()[0].GetMac() != vm.GetSpec().GetPorts()[0].GetMac() {
		t.Errorf("prepare: %v", command)
	}
	n := instance.GetNetworks()
	if len(n) != 1 || n[0].GetPort() != "net0" || n[0].GetVni() != network.GetVni() || n[0].GetMtu() != network.GetMtu() ||
		n[0].GetTunnel() < firstTunnel || n[0].GetTunnel() > uint32(fleet.MaxTunnelID) {
		t.Fatalf("networks: %v", n)
	}
	return n[0].GetTunnel()
}

// checkOneTransaction: the commit's record and the VM's new owner have the
// same version.
func checkOneTransaction(t *testing.T, f *testFleet, fl *flight) {
	t.Helper()
	tables := f.server.tables
	vm, err := tables.vms.Get(t.Context(), fl.vm)
	if err != nil {
		t.Fatal(err)
	}
	m, err := tables.migrations.Get(t.Context(), fl.id)
	if err != nil {
		t.Fatal(err)
	}
	if vm.Version != m.Version || !m.Value.Committed {
		t.Errorf("the VM was changed at %d, the migration (committed: %t) at %d", vm.Version, m.Value.Committed, m.Version)
	}
}

func millis(from time.Time, n int) *timestamppb.Timestamp {
	return timestamppb.New(from.Add(time.Duration(n) * time.Millisecond))
}

func switchMeasured(begin time.Time) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SwitchMeasured{SwitchMeasured: &godwitv1.SwitchMeasured{
		SentBytes: 1 << 20, Passes: 3, FramesDrained: 2, DrainError: "tap net0: no room", StoppedBy: "agent",
		Marks: &godwitv1.SourceMarks{
			GateFlipped: millis(begin, -1), Stopped: millis(begin, 0), PreSwitchover: millis(begin, 5),
			Continued: millis(begin, 6), Drained: millis(begin, 7), Completed: millis(begin, 17),
		},
	}}}
}

func targetRunning(begin time.Time) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetRunning{TargetRunning: &godwitv1.TargetRunning{
		Marks: &godwitv1.TargetMarks{Loaded: millis(begin, 16), Asked: millis(begin, 17), Answered: millis(begin, 19), Resumed: millis(begin, 20)},
	}}}
}

func checkSuccess(t *testing.T, m *godwitv1.Migration) {
	t.Helper()
	var story []string
	for _, entry := range m.GetStory() {
		switch migration.EventKind(entry.GetEvent()) {
		case migration.SwitchMeasured, migration.GuestMeasured: // their places are not determined
		default:
			story = append(story, fmt.Sprintf("%s %s: %s", entry.GetWho(), entry.GetEvent(), entry.GetState()))
		}
	}
	want := []string{
		"server started: preparing", "h2 target-prepared: copying", "h1 source-stopped: switching", "h2 target-loaded: settling",
		"h2 target-running: settling", "h1 source-retired: settling", "server addresses-known: settling", "server timer-fired: settling",
	}
	// The last two answers come from two hosts.
	if !slices.Equal(story[:min(len(want), len(story))], want) || len(story) != len(want)+2 || m.GetCause() != "" {
		t.Errorf("cause %q, story\n%s", m.GetCause(), strings.Join(story, "\n"))
	}
	out := m.GetOutcome()
	var phases []string
	for _, phase := range out.GetPhases() {
		phases = append(phases, fmt.Sprintf("%s %.0f", phase.GetName(), phase.GetMs()))
	}
	if got := strings.Join(phases, ", "); got != "last pages 5, continue 1, device 10, notice 1, commit 2, start 1" {
		t.Errorf("phases: %s", got)
	}
	if out.GetBlackoutMs() != 20 || out.GetOwnMs() != 10 || out.GetPasses() != 3 || out.GetBytes() != 1<<20 ||
		out.GetFramesDrained() != 2 || out.GetDrainError() != "tap net0: no room" || out.GetReturnError() != "" || out.GetStoppedBy() != "agent" || out.GetTotalMs() <= 0 || out.GetSettledMs() < out.GetTotalMs() {
		t.Errorf("outcome %v", out)
	}
	if m.GetEnded() == nil || m.GetDeadline() != nil {
		t.Errorf("ended %v, deadline %v", m.GetEnded(), m.GetDeadline())
	}
}

func TestTunnelsAreNotGivenTwice(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	f.network("blue", "10.20.0.0/24")
	seen := map[uint32]string{}
	for _, vm := range []string{"web1", "web2"} {
		f.running(h1, vm, "blue", "blue")
		if _, err := f.migrate(vm, "h2"); err != nil {
			t.Fatal(err)
		}
		prepare := h2.command().GetPrepareTarget()
		for prepare.GetInstance().GetVm() != vm { // an earlier one, sent again
			prepare = h2.command().GetPrepareTarget()
		}
		for _, n := range prepare.GetInstance().GetNetworks() {
			if other := seen[n.GetTunnel()]; other != "" || n.GetTunnel() < firstTunnel {
				t.Errorf("tunnel %d of %s is used by %q already", n.GetTunnel(), vm, other)
			}
			seen[n.GetTunnel()] = vm
		}
	}
	if len(seen) != 4 {
		t.Errorf("tunnels %v, want 4", seen)
	}
}

func TestWatchOfAMigration(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	stream, err := f.moves.Watch(t.Context(), &godwitv1.WatchMigrationRequest{Id: fl.id})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	see := func(what string, wanted func(*godwitv1.Migration) bool) {
		t.Helper()
		for stream.Receive() {
			if m := stream.Msg().GetMigration(); wanted(m) {
				return
			}
		}
		t.Fatalf("the stream ended before %s: %v", what, stream.Err())
	}
	see("preparing", func(m *godwitv1.Migration) bool { return m.GetState() == "preparing" && m.GetDeadline() != nil })
	fl.answer(h2, "prepare_target")
	fl.next(h1, "start_copy")
	see("copying", func(m *godwitv1.Migration) bool { return m.GetState() == "copying" })
	progress := func(pass int32, begins bool, remaining uint64) *godwitv1.Report {
		return &godwitv1.Report{Event: &godwitv1.Report_CopyProgress{CopyProgress: &godwitv1.CopyProgress{
			Pass: pass, PassBegins: begins, SentBytes: 100, RemainingBytes: remaining, TotalBytes: 900,
			DirtyBytesPerSecond: 50, BandwidthBytesPerSecond: 150,
		}}}
	}
	fl.say(h1, nil, progress(1, true, 800))
	see("the first pass", func(m *godwitv1.Migration) bool { return len(m.GetPasses()) == 1 })
	fl.say(h1, nil, progress(2, true, 200))
	see("progress", func(m *godwitv1.Migration) bool {
		p := m.GetProgress()
		return p.GetPass() == 2 && p.GetRemainingBytes() == 200 && p.GetTotalBytes() == 900 && p.GetEtaMs() == 2000 && len(m.GetPasses()) == 2
	})
	if shown, err := f.moves.Get(t.Context(), &godwitv1.GetMigrationRequest{Id: fl.id}); err != nil || shown.GetMigration().GetProgress().GetPass() != 2 {
		t.Errorf("show does not have the progress: %v, %v", shown, err)
	}
	fl.stopSource()
	fl.finish(inSwitch)
	see("the end", func(m *godwitv1.Migration) bool { return m.GetState() == "succeeded" })
	if stream.Receive() || stream.Err() != nil {
		t.Errorf("after the final state came %v, %v", stream.Msg(), stream.Err())
	}
	f.settled(h1)
	f.settled(h2)
	if r := f.reconciler(); r.Kept() != 0 {
		t.Errorf("%d runs are kept for migrations that are over", r.Kept())
	}
	// Whoever looks at it later does not make the server keep it.
	fl.await(migration.Succeeded)
	if err := fl.cancel(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "it has ended already: succeeded") {
		t.Errorf("cancel at the end: %v", err)
	}
	// The right to run is not given again to a target that has run.
	if answer, err := fl.commit("h2", 1); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("commit at the end: %v, %v", answer, err)
	}
	// Nor does a watch that begins when the last change was told, or a look for one.
	_, stop := f.reconciler().Watch(fleet.MigrationID(fl.id))
	stop()
	if f.reconciler().Watched(fleet.MigrationID(fl.id)) {
		t.Error("it is still watched")
	}
	if r := f.reconciler(); r.Kept() != 0 {
		t.Errorf("%d runs are kept after looking at a migration that is over", r.Kept())
	}
}
