package server

import (
	"slices"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// startSequence is that of every command to start an instance.
const startSequence = 1

func TestVMLife(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	network := f.network("blue", "10.20.0.0/24")
	vm := f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec("blue")})
	if vm.GetPhase() != "starting" || vm.GetOwner().GetHost() != "h1" || vm.GetOwner().GetEpoch() != 1 {
		t.Errorf("created %v", vm)
	}
	if spec := vm.GetSpec(); spec.GetMachine() != "pc-q35-10.0" || spec.GetCpuModel() != "qemu64" || vm.GetAccel() != "tcg" {
		t.Errorf("machine %q, CPU %q, accelerator %q", spec.GetMachine(), spec.GetCpuModel(), vm.GetAccel())
	}
	start := h1.command()
	instance := start.GetStartInstance().GetInstance()
	if start.GetSubject() != "web1" || start.GetEpoch() != 1 || start.GetSequence() != startSequence || instance.GetUid() != vm.GetUid() {
		t.Errorf("start command %v", start)
	}
	if n := instance.GetNetworks(); len(n) != 1 || n[0].GetVni() != network.GetVni() || n[0].GetMtu() != 1500 || n[0].GetPort() != "net0" {
		t.Errorf("networks %v", n)
	}
	h1.report(start, "web1", "running", "")
	f.awaitPhase("web1", fleet.VMRunning)
	if cpus, memory := f.reserved("h1"); cpus != 1 || memory != uint64(128*fleet.MiB) {
		t.Errorf("reserved %d CPUs and %d bytes", cpus, memory)
	}

	if _, err := f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"}); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("delete of a running VM: %v", err)
	}
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1", GraceMs: 1500}); err != nil {
		t.Fatal(err)
	}
	stop := h1.command()
	if stop.GetStopInstance().GetGraceMs() != 1500 || stop.GetSequence() == start.GetSequence() {
		t.Errorf("stop command %v", stop)
	}
	// A second stop leaves the guest no time: it must not be mistaken for the first.
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	if again := h1.command(); again.GetStopInstance() == nil || again.GetStopInstance().GetGraceMs() != 0 || again.GetSequence() <= stop.GetSequence() {
		t.Errorf("second stop command %v", again)
	}
	h1.report(stop, "web1", "exited", "")
	vm = f.awaitPhase("web1", fleet.VMStopped)
	if vm.GetOwner().GetHost() != "" || vm.GetOwner().GetEpoch() != 2 {
		t.Errorf("owner of a stopped VM is %v", vm.GetOwner())
	}
	if cpus, memory := f.reserved("h1"); cpus != 0 || memory != 0 {
		t.Errorf("still reserved: %d CPUs and %d bytes", cpus, memory)
	}

	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	if again := h1.command(); again.GetEpoch() != 3 || again.GetSequence() != startSequence {
		t.Errorf("second start command %v", again)
	}
	h1.report(&godwitv1.Command{Epoch: 1}, "web1", "exited", "late news of the first instance")
	h1.report(&godwitv1.Command{Epoch: 3, Sequence: startSequence}, "web1", "exited", "no such kernel")
	vm = f.awaitPhase("web1", fleet.VMFailed)
	if vm.GetCause() != "no such kernel" {
		t.Errorf("cause %q", vm.GetCause())
	}
	if _, err := f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.networks.Delete(t.Context(), &godwitv1.DeleteNetworkRequest{Name: "blue"}); err != nil {
		t.Errorf("the network is still used: %v", err)
	}
}

func TestCommandsAreRepeatedAfterReconnect(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	first := h1.command()
	h1.close()
	h1 = f.join("h1")
	if second := h1.command(); second.GetSequence() != first.GetSequence() || second.GetEpoch() != first.GetEpoch() || second.GetStartInstance() == nil {
		t.Errorf("after the reconnect %v, before it %v", second, first)
	}
	// The next session finds it running.
	h1.close()
	f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{{Vm: "web1", Epoch: 1, State: "running"}}
		}
	})
	f.awaitPhase("web1", fleet.VMRunning)
}

func TestCommandsSurviveTheServer(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	f.running(h1, "web2")
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1", GraceMs: 700}); err != nil {
		t.Fatal(err)
	}
	before := h1.command()
	f.stop()
	f.start()
	h1 = f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{
				{Vm: "web1", Epoch: 1, State: "running"}, {Vm: "web2", Epoch: 1, State: "running"}}
		}
	})
	after := h1.command()
	if after.GetStopInstance().GetGraceMs() != 700 || after.GetSequence() != before.GetSequence() {
		t.Errorf("command %v, before the restart %v", after, before)
	}
	if vm := f.vm("web2"); vm.GetPhase() != "running" {
		t.Errorf("web2 is %s", vm.GetPhase())
	}
}

func TestRebootOfHostEndsItsVMs(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	h1.close()
	// That an agent does not know an instance proves nothing.
	h1 = f.join("h1")
	if vm := f.vm("web1"); vm.GetPhase() != "running" {
		t.Errorf("the VM is %s because its agent did not mention it", vm.GetPhase())
	}
	h1.close()
	f.join("h1", func(o *agentOptions) { o.hello = func(hello *godwitv1.Hello) { hello.BootId = "boot-2" } })
	vm := f.awaitPhase("web1", fleet.VMFailed)
	if vm.GetCause() != "host h1 was rebooted" {
		t.Errorf("cause %q", vm.GetCause())
	}
}

func TestEndThatNobodySaw(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	h1.close()
	f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{{Vm: "web1", Epoch: 1, State: "exited"}}
		}
	})
	if vm := f.awaitPhase("web1", fleet.VMFailed); vm.GetCause() != "it ended while host h1 had no session" {
		t.Errorf("cause %q", vm.GetCause())
	}
}

// TestWhatEndedIsRemoved: an instance that has ended leaves nothing on its host
// for longer than somebody needs it, and needs no VM for that.
func TestWhatEndedIsRemoved(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	vm := f.running(h1, "web1")
	h1.report(&godwitv1.Command{Epoch: 1}, "web1", "exited", "crashed")
	checkForgets(t, h1.command(), "web1", 1)
	f.awaitPhase("web1", fleet.VMFailed)
	if _, err := f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	h1.close() // and has not taken the command
	h1 = f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{{Vm: "web1", Uid: vm.GetUid(), Epoch: 1, State: "exited"}}
		}
	})
	command := h1.command()
	checkForgets(t, command, "web1", 1)
	if command.GetForgetInstance().GetUid() != vm.GetUid() {
		t.Errorf("it names uid %q, not %q", command.GetForgetInstance().GetUid(), vm.GetUid())
	}
}

func checkForgets(t *testing.T, command *godwitv1.Command, vm string, epoch uint64) {
	t.Helper()
	if forget := command.GetForgetInstance(); forget.GetVm() != vm || forget.GetEpoch() != epoch || command.GetEpoch() != epoch {
		t.Errorf("command %v, want to forget %s at epoch %d", command, vm, epoch)
	}
}

// What a host has of a VM that it is still starting says nothing.
func TestHelloDuringStart(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	h1.command()
	h1.close()
	h1 = f.join("h1", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{{Vm: "web1", Epoch: 1, State: "exited"}}
		}
	})
	if vm := f.vm("web1"); vm.GetPhase() != "starting" {
		t.Errorf("it is %s: %s", vm.GetPhase(), vm.GetCause())
	}
	h1.report(h1.command(), "web1", "running", "")
	f.awaitPhase("web1", fleet.VMRunning)
}

func TestStaleInstancesAreForgottenOnProofOnly(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	vm := f.running(h1, "web1") // epoch 1 at h1
	h1.report(&godwitv1.Command{Epoch: 1}, "web1", "exited", "crashed")
	f.awaitPhase("web1", fleet.VMFailed)
	if left := h1.command(); left.GetForgetInstance() == nil {
		t.Errorf("command %v, want to remove what the crash has left", left)
	}
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	h1.report(h1.command(), "web1", "running", "") // epoch 3 at h1
	f.awaitPhase("web1", fleet.VMRunning)
	h2 := f.join("h2", func(o *agentOptions) {
		o.hello = func(hello *godwitv1.Hello) {
			hello.Instances = []*godwitv1.InstanceReport{
				{Vm: "unknown", Uid: vm.GetUid(), Epoch: 1, State: "running"},
				{Vm: "web1", Uid: "another", Epoch: 1, State: "running"},
				{Vm: "web1", Uid: vm.GetUid(), Epoch: 4, State: "running"},
				{Vm: "web1", Uid: vm.GetUid(), Epoch: 1, State: "running"},
			}
		}
	})
	// Only the last one is proven stale; commands keep their order.
	command := h2.command()
	if command.GetForgetInstance().GetEpoch() != 1 || command.GetSubject() != "web1" || command.GetEpoch() != 1 {
		t.Errorf("command %v, want to forget epoch 1", command)
	}
	select {
	case command := <-h2.commands:
		t.Errorf("another command: %v", command)
	default:
	}
}

func TestReportsOfOthersDoNotCount(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	h2 := f.join("h2")
	h2.report(&godwitv1.Command{Epoch: 1}, "web1", "exited", "lies")
	// The next report of the same session is handled after it.
	f.create(&godwitv1.CreateVMRequest{Name: "web2", Spec: smallSpec(), Host: "h2"})
	h2.report(h2.command(), "web2", "running", "")
	f.awaitPhase("web2", fleet.VMRunning)
	if vm := f.vm("web1"); vm.GetPhase() != "running" {
		t.Errorf("web1 is %s: %s", vm.GetPhase(), vm.GetCause())
	}
}

func TestPlacementOfVMs(t *testing.T) {
	f := newFleet(t)
	request := func(name, host string, memory fleet.Bytes) *godwitv1.CreateVMRequest {
		spec := smallSpec()
		spec.MemoryBytes = uint64(memory)
		return &godwitv1.CreateVMRequest{Name: name, Host: host, Spec: spec}
	}
	_, err := f.vms.Create(t.Context(), request("a", "", fleet.GiB))
	if fleet.CodeOf(err) != fleet.NoFit {
		t.Errorf("without hosts: %v", err)
	}
	f.join("h1")
	f.join("h2")
	if vm := f.create(request("a", "h2", 6*fleet.GiB)); vm.GetOwner().GetHost() != "h2" {
		t.Errorf("a is on %v", vm.GetOwner())
	}
	_, err = f.vms.Create(t.Context(), request("b", "h2", 3*fleet.GiB))
	if fleet.CodeOf(err) != fleet.NoFit || !strings.Contains(err.Error(), "2GiB of 8GiB memory are free, the VM needs 3GiB") {
		t.Errorf("a host that is full: %v", err)
	}
	if _, err := f.vms.Get(t.Context(), &godwitv1.GetVMRequest{Name: "b"}); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("a VM that did not fit was created: %v", err)
	}
	if vm := f.create(request("b", "", 3*fleet.GiB)); vm.GetOwner().GetHost() != "h1" {
		t.Errorf("b is on %v", vm.GetOwner())
	}
	if _, err := f.hosts.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: "h1", Cordoned: true}); err != nil {
		t.Fatal(err)
	}
	_, err = f.vms.Create(t.Context(), request("c", "", 3*fleet.GiB))
	fields := fieldsOf(err)
	if fleet.CodeOf(err) != fleet.NoFit || len(fields) != 2 ||
		fields[0] != (fleet.FieldError{Path: "h1", Problem: "it is cordoned"}) || fields[1].Path != "h2" {
		t.Errorf("nothing fits: %s", describe(err))
	}
	_, err = f.vms.Create(t.Context(), request("c", "nowhere", fleet.GiB))
	if fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("unknown host: %v", err)
	}
}

func TestVersionsAndStates(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	vm := f.running(h1, "web1")
	stale := vm.GetVersion() - 1
	mutations := []struct {
		name string
		call func(version int64) error
	}{
		{"start", func(v int64) error {
			_, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Version: v})
			return err
		}},
		{"stop", func(v int64) error {
			_, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1", Version: v})
			return err
		}},
		{"delete", func(v int64) error {
			_, err := f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1", Version: v})
			return err
		}},
	}
	for _, m := range mutations {
		if err := m.call(stale); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "changed since") {
			t.Errorf("%s of an old version: %v", m.name, err)
		}
	}
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Version: vm.GetVersion()}); err != nil {
		t.Errorf("start of a running VM: %v", err)
	}
	_, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: "h2"})
	if fleet.CodeOf(err) != fleet.Conflict || fleet.HintOf(err) != "move it: godwit migrate web1 --to h2" {
		t.Errorf("start elsewhere: %v, hint %q", err, fleet.HintOf(err))
	}
	_, err = f.vms.Create(t.Context(), &godwitv1.CreateVMRequest{Name: "web1", Spec: smallSpec()})
	if fleet.CodeOf(err) != fleet.Exists {
		t.Errorf("create again: %v", err)
	}
	if got := f.vm("web1").GetVersion(); got != vm.GetVersion() {
		t.Errorf("the record has changed from %d to %d", vm.GetVersion(), got)
	}
}

func TestListsArePaged(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	var want []string
	for i := range 7 {
		name := "vm" + string(rune('a'+i))
		want = append(want, name)
		f.create(&godwitv1.CreateVMRequest{Name: name, Spec: smallSpec(), Stopped: i%2 == 0})
	}
	list := func(request *godwitv1.ListVMsRequest) (names []string, pages int) {
		for {
			response, err := f.vms.List(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			for _, vm := range response.GetVms() {
				names = append(names, vm.GetName())
			}
			if response.GetNextToken() == "" {
				return names, pages
			}
			request.Page.Token = response.GetNextToken()
		}
	}
	names, pages := list(&godwitv1.ListVMsRequest{Page: &godwitv1.PageRequest{Size: 3}})
	if !slices.Equal(names, want) || pages != 3 {
		t.Errorf("%v in %d pages", names, pages)
	}
	names, _ = list(&godwitv1.ListVMsRequest{Host: "h1", Page: &godwitv1.PageRequest{Size: 2}})
	if !slices.Equal(names, []string{"vmb", "vmd", "vmf"}) {
		t.Errorf("on h1: %v", names)
	}
	names, _ = list(&godwitv1.ListVMsRequest{Page: &godwitv1.PageRequest{Size: 5000}})
	if !slices.Equal(names, want) {
		t.Errorf("with too large a page: %v", names)
	}
}
