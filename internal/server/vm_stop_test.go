package server

import (
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
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
