package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// flight is one migration from h1 to h2, moved on by what their fake agents
// say. Like real agents they take each command once, however often it comes.
type flight struct {
	*testFleet
	source, target *fakeAgent
	vm             string
	id             string
	done           map[uint64]bool   // sequences of the commands taken
	copying        *godwitv1.Command // start_copy, until finish answers it
}

// testPolicy leaves every part time enough, and ends the grace time soon.
func testPolicy() migration.Policy {
	policy := migration.DefaultPolicy(fleet.GiB)
	policy.SwitchMax, policy.Grace = time.Minute, 10*time.Millisecond
	return policy
}

// roomy lets a host take many VMs.
func roomy(o *agentOptions) {
	o.hello = func(h *godwitv1.Hello) { h.Host.Cpus, h.Host.MemoryBytes = 100, uint64(100*fleet.GiB) }
}

func (f *testFleet) reconciler() *reconciler {
	return f.server.migrations
}

// fly starts a VM on h1 and its migration to h2 with a policy that may set
// more than the API does. The agents are of hosts h1 and h2.
func (f *testFleet) fly(source, target *fakeAgent, vm string, policy migration.Policy) *flight {
	f.t.Helper()
	f.running(source, vm)
	return f.depart(source, target, vm, policy)
}

// depart starts the migration of a VM that runs already.
func (f *testFleet) depart(source, target *fakeAgent, vm string, policy migration.Policy) *flight {
	f.t.Helper()
	m, err := f.reconciler().create(f.t.Context(), migrationRequest{
		vm: fleet.VMName(vm), target: fleet.HostName(target.name), reason: "test",
		policy: func(fleet.Bytes) (migration.Policy, error) { return policy, policy.Validate() },
	})
	if err != nil {
		f.t.Fatalf("migrate %s: %v", vm, err)
	}
	return f.follow(source, target, vm, m.Name)
}

func (f *testFleet) follow(source, target *fakeAgent, vm, id string) *flight {
	return &flight{testFleet: f, source: source, target: target, vm: vm, id: id, done: map[uint64]bool{}}
}

// opOf names what a command asks for, as in the protocol: "prepare_target".
func opOf(command *godwitv1.Command) string {
	message := command.ProtoReflect()
	if field := message.WhichOneof(message.Descriptor().Oneofs().ByName("op")); field != nil {
		return string(field.Name())
	}
	return ""
}

// next takes the next command of the migration that was not taken yet.
func (fl *flight) next(agent *fakeAgent, op string) *godwitv1.Command {
	fl.t.Helper()
	for {
		command := agent.command()
		subject := command.GetSubject()
		if subject == fl.id && fl.done[command.GetSequence()] || subject != fl.id && strings.HasPrefix(subject, migrationPrefix) {
			continue // taken before, or left of another flight
		}
		if command.GetSubject() != fl.id || opOf(command) != op {
			fl.t.Fatalf("%s got %v, want %s of %s", agent.name, command, op, fl.id)
		}
		fl.done[command.GetSequence()] = true
		if op == "start_copy" {
			fl.copying = command
		}
		return command
	}
}

// say reports something of the migration; answers may be nil.
func (fl *flight) say(agent *fakeAgent, answers *godwitv1.Command, report *godwitv1.Report) {
	report.Subject, report.Sequence = fl.id, answers.GetSequence()
	report.Epoch, report.At = 1, timestamppb.Now()
	agent.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: report}})
}

// answer takes the next command and answers it in the usual way.
func (fl *flight) answer(agent *fakeAgent, op string) *godwitv1.Command {
	fl.t.Helper()
	command := fl.next(agent, op)
	fl.say(agent, command, usualAnswer(op))
	return command
}

const testPort = 4444

func usualAnswer(op string) *godwitv1.Report {
	switch op {
	case "prepare_target":
		return &godwitv1.Report{Event: &godwitv1.Report_TargetPrepared{TargetPrepared: &godwitv1.TargetPrepared{Port: testPort}}}
	case "start_copy":
		return &godwitv1.Report{Event: &godwitv1.Report_SwitchMeasured{SwitchMeasured: &godwitv1.SwitchMeasured{StoppedBy: "agent"}}}
	case "run_target":
		return &godwitv1.Report{Event: &godwitv1.Report_TargetRunning{TargetRunning: &godwitv1.TargetRunning{}}}
	case "retire_source":
		return &godwitv1.Report{Event: &godwitv1.Report_SourceRetired{SourceRetired: &godwitv1.SourceRetired{}}}
	case "release_source":
		return &godwitv1.Report{Event: &godwitv1.Report_SourceReleased{SourceReleased: &godwitv1.SourceReleased{}}}
	case "finish_target":
		return &godwitv1.Report{Event: &godwitv1.Report_TargetFinished{TargetFinished: &godwitv1.TargetFinished{}}}
	case "resume_source":
		return &godwitv1.Report{Event: &godwitv1.Report_SourceResumed{SourceResumed: &godwitv1.SourceResumed{}}}
	default: // release_target
		return &godwitv1.Report{Event: &godwitv1.Report_TargetReleased{TargetReleased: &godwitv1.TargetReleased{}}}
	}
}

func sourceFails(cause string, gone bool) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceFailed{SourceFailed: &godwitv1.SourceFailed{Cause: cause, Gone: gone}}}
}

func targetFails(cause string, gone bool) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetFailed{TargetFailed: &godwitv1.TargetFailed{Cause: cause, Gone: gone}}}
}

// The stages of a flight, in order. At each of them one command waits for its
// answer; at inCopy and inSwitch it is start_copy, which was taken.
const (
	inPrepare = "preparing"
	inCopy    = "copying"
	inSwitch  = "switching"
	inRun     = "settling: the target is to run"
	inRetire  = "settling: the source is to be retired"
	inResume  = "rolling back: the source is to resume"
	inRelease = "rolling back: the target is to be released"
)

// to brings a new flight to a stage.
func (fl *flight) to(stage string) {
	fl.t.Helper()
	if stage == inPrepare {
		fl.await(migration.Preparing)
		return
	}
	fl.answer(fl.target, "prepare_target")
	fl.next(fl.source, "start_copy")
	switch stage {
	case inSwitch:
		fl.stopSource()
	case inRun:
		fl.stopSource()
		fl.mustCommit()
	case inRetire:
		fl.stopSource()
		fl.mustCommit()
		fl.answer(fl.target, "run_target")
		fl.awaitEvent(migration.TargetRunning)
	case inResume:
		fl.mustCancel()
	case inRelease:
		fl.mustCancel()
		fl.answer(fl.source, "resume_source")
		fl.awaitEvent(migration.SourceResumed)
	}
}

// finish brings a flight from a stage to its end.
func (fl *flight) finish(stage string) *godwitv1.Migration {
	fl.t.Helper()
	switch stage {
	case inResume:
		fl.answer(fl.source, "resume_source")
		fallthrough
	case inRelease:
		fl.answer(fl.target, "release_target")
		return fl.await(migration.Aborted)
	case inPrepare:
		fl.answer(fl.target, "prepare_target")
		fl.next(fl.source, "start_copy")
		fallthrough
	case inCopy:
		fl.stopSource()
		fallthrough
	case inSwitch:
		fl.mustCommit()
		fallthrough
	case inRun:
		fl.answer(fl.target, "run_target")
	}
	fl.measure()
	fl.answer(fl.source, "retire_source")
	fl.answer(fl.source, "release_source")
	fl.answer(fl.target, "finish_target")
	return fl.await(migration.Succeeded)
}

// measure answers start_copy.
func (fl *flight) measure() {
	if fl.copying != nil {
		fl.say(fl.source, fl.copying, usualAnswer("start_copy"))
	}
}

func (fl *flight) stopSource() {
	fl.t.Helper()
	fl.say(fl.source, nil, &godwitv1.Report{Event: &godwitv1.Report_SourceStopped{SourceStopped: &godwitv1.SourceStopped{StoppedBy: "agent"}}})
	fl.await(migration.Switching)
}

// asks gives the client that the agent of a host commits with.
func (f *testFleet) asks(host string) godwitv1connect.AgentServiceClient {
	keeper := f.keeper(pki.Identity{Kind: pki.Host, Name: host}, 0)
	return godwitv1connect.NewAgentServiceClient(f.client(f.clientConfig(keeper)), f.url(),
		connect.WithInterceptors(wire.ClientInterceptor(f.url())))
}

func (fl *flight) commit(host string, epoch uint64) (*godwitv1.CommitResponse, error) {
	ctx, cancel := context.WithTimeout(fl.t.Context(), patience)
	defer cancel()
	return askCommit(ctx, fl.asks(host), &godwitv1.CommitRequest{Migration: fl.id, Epoch: epoch})
}

// line opens a target's line to the commit, long before it has loaded.
func (fl *flight) line(host string) *connect.BidiStreamForClientSimple[godwitv1.CommitRequest, godwitv1.CommitResponse] {
	fl.t.Helper()
	ctx, cancel := context.WithTimeout(fl.t.Context(), patience)
	line, err := fl.asks(host).Commit(ctx)
	if err == nil {
		err = line.Send(&godwitv1.CommitRequest{Migration: fl.id, Epoch: 1})
	}
	if err != nil {
		fl.t.Fatal(err)
	}
	fl.t.Cleanup(func() {
		cancel()
		_, _ = line.CloseRequest(), line.CloseResponse()
	})
	return line
}

// askCommit opens a line as an agent does whose target has loaded already.
func askCommit(ctx context.Context, agent godwitv1connect.AgentServiceClient, request *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	line, err := agent.Commit(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = line.CloseRequest(), line.CloseResponse() }()
	asks := &godwitv1.CommitRequest{Migration: request.GetMigration(), Epoch: request.GetEpoch(), Loaded: true}
	for _, one := range []*godwitv1.CommitRequest{request, asks} {
		_ = line.Send(one) // Receive tells why not
	}
	for {
		answer, err := line.Receive()
		if err != nil || !answer.GetSourceStopped() {
			return answer, err
		}
	}
}

func (fl *flight) mustCommit() {
	fl.t.Helper()
	if answer, err := fl.commit(fl.target.name, 1); err != nil || answer.GetEpoch() != 2 {
		fl.t.Fatalf("commit: %v, %v", answer, err)
	}
}

func (fl *flight) cancel() error {
	_, err := fl.moves.Cancel(fl.t.Context(), &godwitv1.CancelMigrationRequest{Id: fl.id, Reason: "changed my mind"})
	return err
}

func (fl *flight) mustCancel() {
	fl.t.Helper()
	if err := fl.cancel(); err != nil {
		fl.t.Fatalf("cancel: %v", err)
	}
}

func (fl *flight) await(state migration.State) *godwitv1.Migration {
	fl.t.Helper()
	return fl.awaitMigration(fl.id, string(state), func(m *godwitv1.Migration) bool { return m.GetState() == string(state) })
}

// awaitEvent waits until an event is in the story.
func (fl *flight) awaitEvent(kind migration.EventKind) *godwitv1.Migration {
	fl.t.Helper()
	return fl.awaitMigration(fl.id, "past "+string(kind), func(m *godwitv1.Migration) bool {
		for _, entry := range m.GetStory() {
			if entry.GetEvent() == string(kind) {
				return true
			}
		}
		return false
	})
}

// awaitMigration follows a migration until it is as wanted.
func (f *testFleet) awaitMigration(id, what string, wanted func(*godwitv1.Migration) bool) *godwitv1.Migration {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	stream, err := f.moves.Watch(ctx, &godwitv1.WatchMigrationRequest{Id: id})
	if err != nil {
		f.t.Fatal(err)
	}
	defer stream.Close()
	var last *godwitv1.Migration
	for stream.Receive() {
		if last = stream.Msg().GetMigration(); wanted(last) {
			return last
		}
	}
	f.t.Fatalf("migration %s is not %s: %v; %v", id, what, last, stream.Err())
	return nil
}

// record reads the stored record.
func (fl *flight) record() migration.Migration {
	fl.t.Helper()
	entry, err := fl.server.tables.migrations.Get(fl.t.Context(), fl.id)
	if err != nil {
		fl.t.Fatal(err)
	}
	return entry.Value
}

// settled waits until all that a host has reported so far was dealt with: one
// report of a session is dealt with after the other.
func (f *testFleet) settled(agent *fakeAgent) {
	f.t.Helper()
	f.running(agent, fmt.Sprintf("barrier%d-%s", f.server.hub.Session(fleet.HostName(agent.name)), agent.name))
}

// checkPlace holds the records of a VM against where it must be: its owner,
// its lock, and whose capacity it takes.
func (f *testFleet) checkPlace(vm string, owner fleet.Owner, lock string, claimedOn ...string) {
	f.t.Helper()
	entry, err := f.server.tables.vms.Get(f.t.Context(), vm)
	if err != nil {
		f.t.Fatal(err)
	}
	if got := entry.Value; got.Owner != owner || string(got.Migration) != lock {
		f.t.Errorf("%s belongs to %v and is locked by %q; want %v and %q", vm, got.Owner, got.Migration, owner, lock)
	}
	want := map[fleet.HostName]bool{}
	for _, host := range claimedOn {
		want[fleet.HostName(host)] = true
	}
	ledgers, _, err := f.server.tables.ledgers.All(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, ledger := range ledgers {
		host := ledger.Value.Host
		if _, claimed := ledger.Value.Claims[entry.Value.UID]; claimed != want[host] {
			f.t.Errorf("%s has a claim on %s: %t, want %t", vm, host, claimed, want[host])
		}
		delete(want, host)
	}
	if len(want) > 0 {
		f.t.Errorf("%s has no claim on %v", vm, want)
	}
}

func (fl *flight) atSource(t *testing.T) {
	t.Helper()
	fl.checkPlace(fl.vm, fleet.Owner{Host: "h1", Epoch: 1}, "", "h1")
}

func (fl *flight) atTarget(t *testing.T) {
	t.Helper()
	fl.checkPlace(fl.vm, fleet.Owner{Host: "h2", Epoch: 2}, "", "h2")
}
