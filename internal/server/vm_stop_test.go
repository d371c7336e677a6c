package server

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// Whoever waits for a VM to stop sees in its record what keeps it from that.
func TestStopSaysWhatKeepsIt(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	f.running(h1, "web2")
	stop := func(name string) *godwitv1.VM {
		t.Helper()
		response, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: name})
		if err != nil || response.GetVm().GetPhase() != "stopping" {
			t.Fatalf("stop: %v, %s", response, describe(err))
		}
		return response.GetVm()
	}
	stop("web1")
	command := h1.command()
	h1.report(command, "web1", "running", "its process does not end")
	vm := f.awaitVM("web1", "kept", func(vm *godwitv1.VM) bool { return vm.GetCause() != "" })
	if vm.GetPhase() != "stopping" || vm.GetCause() != "its process does not end" {
		t.Errorf("it is %s: %s", vm.GetPhase(), vm.GetCause())
	}
	_, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1"})
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "still stopping on host h1") {
		t.Errorf("start: %v", err)
	}
	stop("web1")
	again := h1.command()
	if again.GetSequence() <= command.GetSequence() {
		t.Errorf("asked again by %v", again)
	}
	h1.report(again, "web1", "exited", "")
	if vm := f.awaitPhase("web1", fleet.VMStopped); vm.GetCause() != "" {
		t.Errorf("a VM that stopped as it should says %q", vm.GetCause())
	}

	session := f.server.hub.session("h1")
	h1.close()
	<-session.finished
	if vm := stop("web2"); !strings.Contains(vm.GetCause(), "host h1 had no session") {
		t.Errorf("stop without its host: %q", vm.GetCause())
	}
	h1 = f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{{Vm: "web2", Epoch: 1, State: "running"}}
		}
	})
	h1.report(h1.command(), "web2", "exited", "")
	f.awaitPhase("web2", fleet.VMStopped)
}

// A stop is sent again for as long as the VM is stopping: its host may not have been
// able to carry it out, and have kept silent. A start is not.
func TestStopIsSentAgain(t *testing.T) {
	for phase, again := range map[fleet.VMPhase]bool{fleet.VMStarting: false, fleet.VMStopping: true} {
		synctest.Test(t, func(t *testing.T) {
			log := slog.New(slog.DiscardHandler)
			h, m := newHub(), newMirror(tables{}, log)
			vm := fleet.VM{Name: "web1", Phase: phase, Owner: fleet.Owner{Host: "h1", Epoch: 1}}
			m.vms = map[fleet.VMName]store.Entry[fleet.VM]{"web1": {Name: "web1", Version: 1, Value: vm}}
			s := newSession("h1", time.Second)
			if err := h.open(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			l := newLifecycle(tables{
				vms:   store.NewTable[fleet.VM](always{value: vm}, "vms"),
				stops: store.NewTable[stopOrder](always{value: stopOrder{Sequence: 7}}, "stops"),
			}, m, h, log)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go l.run(ctx)
			l.changed("web1")
			first := (<-s.queue).GetCommand()
			for range 2 {
				select {
				case message := <-s.queue:
					if command := message.GetCommand(); !again || command.GetSequence() != first.GetSequence() {
						t.Errorf("%s: got %v after %v", phase, command, first)
					}
				case <-time.After(stopAgainEvery + lookAgainEvery):
					if again {
						t.Fatal("it was not sent again")
					}
				}
			}
		})
	}
}
