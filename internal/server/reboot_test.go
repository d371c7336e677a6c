package server

import (
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/store"
)

func booted(boot string) func(*agentOptions) {
	return func(o *agentOptions) { o.hello = func(hello *godwitv1.Hello) { hello.BootId = boot } }
}

// lockBy gives a VM to a migration of which nothing else is known; "" takes it back.
func (f *testFleet) lockBy(vm string, id fleet.MigrationID) {
	f.t.Helper()
	table := f.server.tables.vms
	entry, err := table.Get(f.t.Context(), vm)
	if err != nil {
		f.t.Fatal(err)
	}
	entry.Value.Migration = id
	if _, err := f.store.Commit(f.t.Context(), store.If(table.At(vm, entry.Version)), table.Put(vm, entry.Value)); err != nil {
		f.t.Fatal(err)
	}
	f.awaitVM(vm, "locked by "+string(id), func(vm *godwitv1.VM) bool { return vm.GetMigration() == string(id) })
}

// A server that dies when it has stored the new boot id, and before it has recorded
// what that proves, loses nothing: a later Hello of the same boot ends the VM. What
// was started since is not taken for what the reboot has ended.
func TestRebootOutlivesTheServer(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.running(h1, "web1")
	f.running(h1, "web2")
	f.lockBy("web1", "m-1") // so that its end cannot be recorded yet
	h1 = f.join("h1", booted("boot-2"))
	f.awaitPhase("web2", fleet.VMFailed)
	h1.command() // to remove what it has left
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web2"}); err != nil {
		t.Fatal(err)
	}
	h1.report(h1.command(), "web2", lifecycle.Running, "")
	f.awaitPhase("web2", fleet.VMRunning)
	f.stop()
	f.start()
	f.lockBy("web1", "")
	f.join("h1", booted("boot-2"))
	if vm := f.awaitPhase("web1", fleet.VMFailed); vm.GetCause() != "host h1 was rebooted" {
		t.Errorf("cause %q", vm.GetCause())
	}
	if vm := f.vm("web2"); vm.GetPhase() != string(fleet.VMRunning) {
		t.Errorf("web2, which was started after the reboot, is %s: %s", vm.GetPhase(), vm.GetCause())
	}
	f.join("h1", booted("boot-2"))
	host, err := f.server.tables.hosts.Get(t.Context(), "h1")
	if err != nil || len(host.Value.Ended) > 0 {
		t.Errorf("of what the reboot has ended, and all is recorded, %v is kept; %v", host.Value.Ended, err)
	}
}

// A VM that its host does not know shows that as its cause, and what to do, until
// the host knows it again. To stop it makes the host look.
func TestHostDoesNotKnowOfAVM(t *testing.T) {
	f := newFleet(t)
	vm := f.running(f.join("h1"), "web1")
	unknown := func(vm *godwitv1.VM) bool {
		return strings.HasPrefix(vm.GetCause(), "host h1 does not know of it") && strings.Contains(vm.GetCause(), "godwit vm stop web1")
	}
	f.join("h1")
	if vm := f.awaitVM("web1", "unknown to its host", unknown); vm.GetPhase() != string(fleet.VMRunning) {
		t.Errorf("it is %s", vm.GetPhase())
	}
	f.join("h1", saying(&godwitv1.InstanceReport{Vm: "web1", Uid: vm.GetUid(), Epoch: 1, State: lifecycle.Running}))
	f.awaitVM("web1", "known again", func(vm *godwitv1.VM) bool { return vm.GetCause() == "" })
	h1 := f.join("h1")
	f.awaitVM("web1", "unknown to its host", unknown)
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1"}); err != nil {
		t.Fatal(err)
	}
	h1.report(h1.command(), "web1", lifecycle.Absent, "")
	if vm := f.awaitPhase("web1", fleet.VMStopped); vm.GetCause() != "" {
		t.Errorf("cause %q", vm.GetCause())
	}
}
