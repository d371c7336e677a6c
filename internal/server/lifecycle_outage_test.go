package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// cutOff is the life cycle as it is while the store does not answer, with the
// fleet's records and sessions. Giving it tables ends that.
func (f *testFleet) cutOff() *lifecycle {
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
	lost.report(t.Context(), "h1", running)
	ended("after the answer to the start")
	h1 = f.join("h1", saying(running.GetInstance()))
	f.awaitPhase("web1", fleet.VMRunning)

	off := instanceReport("web1", "exited", guestShutdown, 0)
	lost.report(t.Context(), "h1", off)
	ended("after the guest's powering off")
	// The store is away for the next Hello, too.
	h1 = f.join("h1", saying(running.GetInstance()))
	lost.connected(t.Context(), "h1", arrival{}, &godwitv1.Hello{Instances: []*godwitv1.InstanceReport{off.GetInstance()}})
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
	l.connected(t.Context(), "h1", arrival{rebooted: true, ended: []fleet.Instance{gone}}, &godwitv1.Hello{
		BootId: "boot-1", Instances: []*godwitv1.InstanceReport{{Vm: "web2", Epoch: 1, State: "running"}},
	})
	for range 2 {
		if err := l.look(t.Context(), "web1"); !store.Passes(err) {
			t.Fatalf("looked at without the store: %v", err)
		}
	}
	l.tables = f.server.tables

	// A migration locks web1 before the end can be taken: it is held on.
	f.lockBy("web1", "m-1")
	if err := l.settleHeld(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if vm := f.vm("web1"); vm.GetPhase() != "running" || l.held["web1"] == nil {
		t.Fatalf("it is %s, and %v is held", vm.GetPhase(), l.held["web1"])
	}
	f.lockBy("web1", "")
	if err := l.settleHeld(t.Context(), "web1"); err != nil {
		t.Fatal(err)
	}
	if vm := f.awaitPhase("web1", fleet.VMFailed); vm.GetCause() != "host h1 was rebooted" {
		t.Errorf("cause %q", vm.GetCause())
	}
	if vm := f.vm("web2"); vm.GetPhase() != "running" || len(l.held) != 0 {
		t.Errorf("web2 is %s, %v are held", vm.GetPhase(), l.held)
	}
}

// The end of an older instance, heard of late, does not replace a newer one's.
func TestNewestEndIsHeld(t *testing.T) {
	l := newLifecycle(tables{}, nil, nil, nil)
	for _, test := range []struct {
		host        fleet.HostName
		epoch, want uint64
	}{{"h1", 1, 1}, {"h2", 2, 2}, {"h1", 1, 2}, {"h1", 3, 3}} {
		l.hold(test.host, &godwitv1.InstanceReport{Vm: "web1", Epoch: test.epoch})
		if held := l.held["web1"].report.GetEpoch(); held != test.want {
			t.Errorf("after the end of epoch %d that of %d is held, want %d", test.epoch, held, test.want)
		}
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
	if err := l.look(t.Context(), "web1"); !store.Passes(err) {
		t.Errorf("looked at without the store: %v", err)
	}
	l.tables = f.server.tables
	if err := l.look(t.Context(), "web1"); err != nil {
		t.Error(err)
	}
	if command := h1.command(); command.GetStopInstance().GetGraceMs() != 700 {
		t.Errorf("the command is %v", command)
	}
}

// always is a store in which one record stays as it is.
type always struct {
	store.Records
	value any
}

func (a always) Get(_ context.Context, key string) (store.Record, error) {
	text, err := json.Marshal(a.value)
	return store.Record{Key: key, Value: text, Version: 1}, err
}

// A command that could not be sent is sent when that is possible again, though
// nothing changes; and once only.
func TestCommandsThatHadToWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		h, m := newHub(), newMirror(tables{}, log)
		starting := fleet.VM{Name: "web1", Phase: fleet.VMStarting, Owner: fleet.Owner{Host: "h1", Epoch: 1}}
		m.vms = map[fleet.VMName]store.Entry[fleet.VM]{"web1": {Name: "web1", Version: 1, Value: starting}}
		s := newSession("h1", time.Second)
		if err := h.open(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		for range sessionQueue {
			if err := h.Send("h1", &godwitv1.Command{}); err != nil {
				t.Fatal(err)
			}
		}
		l := newLifecycle(tables{vms: store.NewTable[fleet.VM](always{value: starting}, "vms")}, m, h, log)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go l.run(ctx)
		l.changed("web1")
		synctest.Wait()
		for range sessionQueue {
			<-s.queue
		}
		select {
		case message := <-s.queue:
			if message.GetCommand().GetStartInstance() == nil {
				t.Errorf("got %v", message)
			}
		case <-time.After(lookAgainEvery + time.Millisecond): // of the bubble's clock
			t.Fatal("the command was not sent again")
		}
		select {
		case message := <-s.queue:
			t.Errorf("another message: %v", message)
		case <-time.After(3 * lookAgainEvery):
		}
	})
}
