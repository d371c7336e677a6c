package server

import (
	"path/filepath"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/store"
)

// cutOff is the life cycle as it is while the store does not answer, with the
// fleet's records and sessions. Giving it Tables ends that.
func (f *testFleet) cutOff() *lifecycle.Lifecycle {
	f.t.Helper()
	gone, err := store.Open(f.t.Context(), store.Config{Dir: filepath.Join(f.dir, "gone")})
	if err != nil {
		f.t.Fatal(err)
	}
	if err := gone.Close(); err != nil {
		f.t.Fatal(err)
	}
	return newLifecycle(newTables(gone), f.server.mirror, f.server.hub, f.server.log)
}

func instanceReport(vm, state, cause string, answers uint64) *godwitv1.Report {
	return &godwitv1.Report{Subject: vm, Epoch: 1, Sequence: answers, Event: &godwitv1.Report_Instance{
		Instance: &godwitv1.InstanceReport{Vm: vm, Epoch: 1, State: state, Cause: cause},
	}}
}

func saying(instances ...*godwitv1.InstanceReport) func(*agentOptions) {
	return func(o *agentOptions) { o.hello = func(hello *godwitv1.Hello) { hello.Instances = instances } }
}

// What a host says while the store does not answer it says again, because its
// session ends. None of it waits for an agent that happens to reconnect.
func TestReportsWithoutTheStore(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	lost := f.cutOff()
	ended := func(when string) {
		t.Helper()
		if err := h1.end(); fleet.CodeOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), "vm web1") || fleet.HintOf(err) == "" {
			t.Errorf("%s the session ended with %v, hint %q", when, err, fleet.HintOf(err))
		}
	}
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	start := h1.command()
	running := instanceReport("web1", "running", "", start.GetSequence())
	lost.Report(t.Context(), "h1", running)
	ended("after the answer to the start")
	h1 = f.join("h1", saying(running.GetInstance()))
	f.awaitPhase("web1", fleet.VMRunning)

	off := instanceReport("web1", "exited", "guest-shutdown", 0)
	lost.Report(t.Context(), "h1", off)
	ended("after the guest's powering off")
	// The store is away for the next Hello, too.
	h1 = f.join("h1", saying(running.GetInstance()))
	lost.Connected(t.Context(), "h1", lifecycle.Arrival{}, &godwitv1.Hello{Instances: []*godwitv1.InstanceReport{off.GetInstance()}})
	ended("after the Hello")
	f.join("h1", saying(off.GetInstance()))
	if vm := f.awaitPhase("web1", fleet.VMStopped); vm.GetCause() != "the guest powered itself off" {
		t.Errorf("cause %q", vm.GetCause())
	}
}

// A report that no store will ever take ends no session: it would be said again
// for ever.
func TestReportThatCannotBeTaken(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	h1.report(&godwitv1.Command{Epoch: 1}, strings.Repeat("x", 1000), "running", "")
	f.running(h1, "web1") // in the same session
}

// What a reboot has ended is kept until the VM's record has it, though the store
// is away or a migration holds the VM.
func TestHeldEndsWithoutTheStore(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	f.running(h1, "web2")
	l := f.cutOff()
	gone := fleet.Instance{VM: "web1", UID: fleet.InstanceUID(f.vm("web1").GetUid()), Epoch: 1}
	l.Connected(t.Context(), "h1", lifecycle.Arrival{Rebooted: true, Ended: []fleet.Instance{gone}}, &godwitv1.Hello{
		BootId: "boot-1", Instances: []*godwitv1.InstanceReport{{Vm: "web2", Epoch: 1, State: "running"}},
	})
	for range 2 {
		if err := l.Look(t.Context(), "web1"); !store.Passes(err) {
			t.Fatalf("looked at without the store: %v", err)
		}
	}
	l.Tables = f.server.tables.lifecycle()

	// A migration locks web1 before the end can be taken: it is held on.
	f.lockBy("web1", "m-1")
	if err := l.Look(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if vm := f.vm("web1"); vm.GetPhase() != "running" {
		t.Fatalf("it is %s", vm.GetPhase())
	}
	f.lockBy("web1", "")
	if err := l.Look(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if vm := f.awaitPhase("web1", fleet.VMFailed); vm.GetCause() != "host h1 was rebooted" {
		t.Errorf("cause %q", vm.GetCause())
	}
	if vm := f.vm("web2"); vm.GetPhase() != "running" {
		t.Errorf("web2 is %s", vm.GetPhase())
	}
}

// The order to stop is read from the store when the host is told.
func TestStopWithoutTheStore(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1", GraceMs: 700}); err != nil {
		t.Fatal(err)
	}
	h1.command()
	f.awaitPhase("web1", fleet.VMStopping)
	l := f.cutOff()
	if err := l.Look(t.Context(), "web1"); !store.Passes(err) {
		t.Errorf("looked at without the store: %v", err)
	}
	l.Tables = f.server.tables.lifecycle()
	if err := l.Look(t.Context(), "web1"); err != nil {
		t.Error(err)
	}
	if command := h1.command(); command.GetStopInstance().GetGraceMs() != 700 {
		t.Errorf("the command is %v", command)
	}
}
