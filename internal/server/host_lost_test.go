package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// leave ends the session of an agent, as the death of its host does.
func (f *testFleet) leave(agent *fakeAgent) {
	f.t.Helper()
	session := f.server.hub.session(fleet.HostName(agent.name))
	agent.close()
	<-session.finished
}

// lost declares a host lost.
func (f *testFleet) lost(host string) *godwitv1.DeclareHostLostResponse {
	f.t.Helper()
	response, err := f.hosts.DeclareLost(f.t.Context(), &godwitv1.DeclareHostLostRequest{Name: host, IsOff: true})
	if err != nil {
		f.t.Fatalf("declare %s lost: %s", host, describe(err))
	}
	return response
}

// hasInstances makes an agent say what it has when it connects.
func hasInstances(instances ...*godwitv1.InstanceReport) func(*agentOptions) {
	return func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) { hello.Instances = instances }
	}
}

// mustForget wants the next command of an agent to remove an instance.
func (f *testFleet) mustForget(agent *fakeAgent, vm string, epoch uint64) {
	f.t.Helper()
	if forget := agent.command().GetForgetInstance(); forget.GetVm() != vm || forget.GetEpoch() != epoch {
		f.t.Errorf("%s was told %v, want it to forget %s at %d", agent.name, forget, vm, epoch)
	}
}

// VMs without a migration: one runs, one starts, one stops.
func TestLostHost(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	vm := f.running(h1, "web1")
	f.running(h1, "web2")
	f.running(h2, "web3")
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web2"}); err != nil {
		t.Fatal(err)
	}
	f.create(&godwitv1.CreateVMRequest{Name: "web4", Spec: smallSpec(), Host: "h1"})
	f.leave(h1)
	response := f.lost("h1")
	phases := map[string]string{}
	for _, vm := range response.GetVms() {
		phases[vm.GetName()] = vm.GetPhase() + ": " + vm.GetCause()
	}
	const cause = "failed: host h1 was declared lost by the operator"
	if len(phases) != 3 || phases["web1"] != cause || phases["web2"] != "stopped: " || phases["web4"] != cause {
		t.Errorf("VMs: %q", phases)
	}
	if host := response.GetHost(); !host.GetCordoned() || host.GetCpusReserved() != 0 || len(response.GetMigrations()) != 0 {
		t.Errorf("the host is %v, migrations %v", host, response.GetMigrations())
	}
	f.checkPlace("web1", fleet.Owner{Epoch: 2}, "")
	f.checkPlace("web3", fleet.Owner{Host: "h2", Epoch: 1}, "", "h2")

	if again := f.lost("h1"); len(again.GetVms()) != 0 {
		t.Errorf("the second time it has ended %v", again.GetVms())
	}
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1"}); err != nil {
		t.Fatal(describe(err))
	}
	f.checkPlace("web1", fleet.Owner{Host: "h2", Epoch: 3}, "", "h2")

	// It was not off: what it has is stale, started elsewhere or not.
	f.running(f.join("h3"), "web5")
	h1 = f.join("h1", hasInstances(
		&godwitv1.InstanceReport{Vm: "web1", Uid: vm.GetUid(), Epoch: 1, State: "running"},
		&godwitv1.InstanceReport{Vm: "web4", Uid: f.vm("web4").GetUid(), Epoch: 1, State: "running"},
	))
	f.mustForget(h1, "web1", 1)
	f.mustForget(h1, "web4", 1)
	f.checkPlace("web1", fleet.Owner{Host: "h2", Epoch: 3}, "", "h2")
}

func TestWhatIsNoLostHost(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	for _, test := range []struct {
		request *godwitv1.DeclareHostLostRequest
		code    fleet.Code
		says    string
	}{
		{&godwitv1.DeclareHostLostRequest{Name: "h1", IsOff: true}, fleet.Conflict, "it is not off: its agent has a session"},
		{&godwitv1.DeclareHostLostRequest{Name: "h1"}, fleet.Invalid, "must say that the host is off"},
		{&godwitv1.DeclareHostLostRequest{Name: "h9", IsOff: true}, fleet.NotFound, "there is no host of that name"},
		{&godwitv1.DeclareHostLostRequest{Name: "h1", IsOff: true, Version: 1}, fleet.Conflict, "not 1: it has changed"},
	} {
		_, err := f.hosts.DeclareLost(t.Context(), test.request)
		if fleet.CodeOf(err) != test.code || !strings.Contains(describe(err), test.says) {
			t.Errorf("%v: %s", test.request, describe(err))
		}
	}
	if vm := f.vm("web1"); vm.GetPhase() != "running" {
		t.Errorf("the VM is %s", vm.GetPhase())
	}
	host, err := f.hosts.Get(t.Context(), &godwitv1.GetHostRequest{Name: "h1"})
	if err != nil || host.GetHost().GetCordoned() {
		t.Errorf("the host is cordoned: %v, %v", host, err)
	}
}

// A new leader does not know yet which hosts are up: it takes nobody's word until
// all that are had time to call it.
func TestLostHostOfANewLeader(t *testing.T) {
	t.Parallel()
	first, _ := newReplicas(t, 1)
	h1, h2 := first.join("h1"), first.join("h2")
	first.running(h1, "web1")
	first.running(h2, "web2")
	f := first.succeeded()
	declare := func(host string) error {
		_, err := f.hosts.DeclareLost(t.Context(), &godwitv1.DeclareHostLostRequest{Name: host, IsOff: true})
		return err
	}
	mustBeTooSoon(t, declare("h1"))
	if vm := f.vm("web1"); vm.GetPhase() != "running" {
		t.Errorf("the VM is %s", vm.GetPhase())
	}

	f.leave(f.join("h2")) // this one it has heard of
	if err := declare("h2"); err != nil {
		t.Errorf("h2: %s", describe(err))
	}

	f.leadsLong()
	if err := declare("h1"); err != nil {
		t.Errorf("h1: %s", describe(err))
	}
	if vm := f.vm("web1"); vm.GetPhase() != "failed" {
		t.Errorf("the VM is %s", vm.GetPhase())
	}
}

// The same holds for a target that is to have its VM taken.
func TestReturnAtANewLeader(t *testing.T) {
	t.Parallel()
	first, _ := newReplicas(t, 1)
	fl := first.fly(first.join("h1"), first.join("h2"), "web1", testPolicy())
	fl.to(inRun)
	f := first.succeeded()
	ask := func() error {
		_, err := f.moves.Return(t.Context(), &godwitv1.ReturnMigrationRequest{Id: fl.id, HostIsOff: "h2"})
		return err
	}
	mustBeTooSoon(t, ask())
	f.leadsLong()
	if err := ask(); err != nil {
		t.Error(describe(err))
	}
}

// leadsLong makes all agents have had the time to come back.
func (f *testFleet) leadsLong() {
	f.server.leader.set(func() { f.server.leader.term.began = time.Now().Add(-agentsBackWithin) })
}

func mustBeTooSoon(t *testing.T, err error) {
	t.Helper()
	after, hint := fleet.RetryAfterOf(err), fleet.HintOf(err)
	if fleet.CodeOf(err) != fleet.Unavailable || after <= 0 || after > agentsBackWithin || !strings.HasPrefix(hint, "ask again in ") {
		t.Errorf("%s, retry after %v, hint %q", describe(err), after, hint)
	}
}

// The source is lost in the copy. If the target has everything the VM goes on
// there, and nobody waits for the source; if not, it is down.
func TestLostSource(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	loaded, unsent := f.fly(h1, h2, "web1", testPolicy()), f.fly(h1, h2, "web2", testPolicy())
	loaded.to(inCopy)
	unsent.to(inCopy)
	f.leave(h1)
	response := f.lost("h1")
	if moves := response.GetMigrations(); len(moves) != 2 || moves[0].GetState() != "switching" || len(response.GetVms()) != 2 {
		t.Errorf("it goes on with %v", response)
	}
	loaded.mustCommit()
	loaded.answer(h2, "run_target")
	loaded.answer(h2, "finish_target")
	loaded.await(migration.Succeeded)
	loaded.atTarget(t)

	unsent.say(h2, nil, targetFails("the stream broke", true))
	unsent.answer(h2, "release_target")
	m := unsent.await(migration.Aborted)
	if want := "h1: declared lost by the operator; h2: the stream broke"; m.GetCause() != want {
		t.Errorf("cause %q, want %q", m.GetCause(), want)
	}
	f.checkPlace("web2", fleet.Owner{Epoch: 2}, "")
	if vm := f.vm("web2"); vm.GetPhase() != "failed" || vm.GetCause() != m.GetCause() {
		t.Errorf("the VM is %s: %s", vm.GetPhase(), vm.GetCause())
	}
}

// The target is lost with the right to run, and nobody knows whether it did.
func TestLostTargetAfterTheCommit(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	policy := testPolicy()
	policy.SettleMax = 300 * time.Millisecond
	fl := f.fly(h1, h2, "web1", policy)
	fl.to(inRun)
	fl.next(h2, "run_target")
	m := fl.await(migration.NeedsOperator)
	if remedies := strings.Join(m.GetRemedies(), "\n"); !strings.Contains(remedies, "godwit host lost h2 --is-off") {
		t.Errorf("remedies: %s", remedies)
	}
	f.leave(h2)
	moves := f.lost("h2").GetMigrations()
	if len(moves) != 1 || !strings.HasPrefix(moves[0].GetRemedies()[0], "start the agent on h1") {
		t.Errorf("it goes on with %v", moves)
	}
	fl.answer(h1, "release_source")
	f.settled(h1) // a watch of what is over tells only how it is
	if m := fl.awaitEvent(migration.SourceReleased); !slices.Equal(m.GetRemedies(), []string{"godwit vm start web1"}) {
		t.Errorf("remedies when h1 has answered: %q", m.GetRemedies())
	}
	f.checkPlace("web1", fleet.Owner{Epoch: 3}, "")
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: "h1"}); err != nil {
		t.Fatal(describe(err))
	}
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 4}, "", "h1")
	start := h1.command()
	for strings.HasPrefix(start.GetSubject(), migrationPrefix) { // sent again while its answer was on the way
		start = h1.command()
	}
	if start.GetStartInstance() == nil { // by then the end is known to all of the server
		t.Errorf("h1 was told %v", start)
	}
	h2 = f.join("h2", hasInstances(&godwitv1.InstanceReport{
		Vm: "web1", Uid: f.vm("web1").GetUid(), Epoch: 2, State: "running", Migration: fl.id,
	}))
	f.mustForget(h2, "web1", 2)
}

// targetLost is a flight from h1 whose target, h2, was lost before the commit.
func (f *testFleet) targetLost() *flight {
	f.t.Helper()
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	f.leave(h2)
	f.lost("h2")
	fl.answer(h1, "resume_source")
	fl.await(migration.Aborted)
	return fl
}

// The target is lost before the commit, and is back when all is over: what it has
// waits for a commit that does not come.
func TestLostTargetReturns(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	fl := f.targetLost()
	fl.atSource(t)
	f.settled(fl.source) // by then the end is known to all of the server
	incoming := hasInstances(&godwitv1.InstanceReport{
		Vm: "web1", Uid: f.vm("web1").GetUid(), Epoch: 2, State: "incoming", Migration: fl.id,
	})
	f.mustForget(f.join("h2", incoming), "web1", 2)
	fl.atSource(t)
}

// Nobody runs the VM, and it waits for a source that never comes back.
func TestLostSourceInRollback(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	policy := testPolicy()
	policy.RollbackMax = 300 * time.Millisecond
	fl := f.fly(h1, h2, "web1", policy)
	fl.to(inResume)
	m := fl.await(migration.NeedsOperator)
	if remedies := m.GetRemedies(); len(remedies) != 3 || !strings.HasPrefix(remedies[2], "godwit host lost h1 --is-off") {
		t.Errorf("remedies: %q", remedies)
	}
	f.leave(h1)
	f.lost("h1")
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	f.checkPlace("web1", fleet.Owner{Epoch: 2}, "")
	f.awaitPhase("web1", fleet.VMFailed)
}

// A lost source is back before the migration has ended, with an instance of which
// nobody knows yet that it is stale. It is asked again.
func TestLostSourceReturnsTooSoon(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	f.leave(h1)
	f.lost("h1")
	has := hasInstances(&godwitv1.InstanceReport{
		Vm: "web1", Uid: f.vm("web1").GetUid(), Epoch: 1, State: "running", Migration: fl.id,
	})
	h1 = f.join("h1", has)
	fl.say(h2, nil, targetFails("the stream broke", true))
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	if err := h1.end(); !strings.Contains(err.Error(), "it was declared lost") {
		t.Errorf("its session ended with %v", err)
	}
	f.mustForget(f.join("h1", has), "web1", 1)
}

// A lost host is back, and the migration that it was lost in has been over for
// long. That the server reads all records anew tells nothing new of it.
func TestLostHostThatIsBackForLong(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	fl := f.targetLost()
	f.settled(fl.source) // by then the end is known to all of the server
	f.join("h2")
	session := f.server.hub.session("h2")
	if _, err := f.server.mirror.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-session.ended:
		t.Errorf("its session has ended: %v", session.cause)
	default:
	}
}

// A lost host is back while its VM, which runs elsewhere by now, migrates on: what
// it still has is stale all the same.
func TestLostHostReturnsDuringAMove(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2, h3 := f.join("h1"), f.join("h2"), f.join("h3")
	f.running(h1, "web1")
	f.leave(h1)
	f.lost("h1")
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: "h2"}); err != nil {
		t.Fatal(describe(err))
	}
	h2.report(h2.command(), "web1", "running", "")
	f.awaitPhase("web1", fleet.VMRunning)
	if _, err := f.moves.Create(t.Context(), &godwitv1.CreateMigrationRequest{Vm: "web1", Target: "h3"}); err != nil {
		t.Fatal(describe(err))
	}
	if prepare := h3.command(); prepare.GetPrepareTarget() == nil {
		t.Fatalf("h3 was told %v", prepare)
	}
	f.mustForget(f.join("h1", hasInstances(&godwitv1.InstanceReport{
		Vm: "web1", Uid: f.vm("web1").GetUid(), Epoch: 1, State: "running",
	})), "web1", 1)
}

// What a call has done that was cut off after the cordon, the next one need not.
func TestLostHostThatIsCordoned(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	f.leave(h1)
	cut := f.server.tables
	entry, err := cut.hosts.Get(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	entry.Value.Cordoned = true
	if err := f.server.replace(t.Context(), cut.hosts.At("h1", entry.Version), cut.hosts.Put("h1", entry.Value)); err != nil {
		t.Fatal(err)
	}
	if vms := f.lost("h1").GetVms(); len(vms) != 1 || vms[0].GetPhase() != "failed" {
		t.Errorf("VMs: %v", vms)
	}
}
