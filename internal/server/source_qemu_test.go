package server

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
)

var (
	oldQEMU = fleet.InstanceQEMU{Version: "7.2.0", Capabilities: fleet.Capabilities{"multifd"}}
	newQEMU = fleet.InstanceQEMU{Version: "10.0.2", Capabilities: fleet.Capabilities{"multifd", "switchover-ack"}}
)

// upgraded is a host that has the new QEMU, and instances.
func upgraded(instances ...*godwitv1.InstanceReport) func(*agentOptions) {
	return func(o *agentOptions) {
		o.hello = func(h *godwitv1.Hello) {
			h.Host.Cpus, h.Host.MemoryBytes = 100, uint64(100*fleet.GiB)
			h.Host.QemuVersion, h.Host.MigrationCapabilities = newQEMU.Version, newQEMU.Capabilities
			h.Instances = instances
		}
	}
}

// by is what an agent says of an instance of epoch 1.
func by(qemu fleet.InstanceQEMU, vm, state string) *godwitv1.InstanceReport {
	return &godwitv1.InstanceReport{Vm: vm, Epoch: 1, State: state, QemuVersion: qemu.Version, MigrationCapabilities: qemu.Capabilities}
}

func (f *testFleet) awaitQEMU(vm string, want fleet.InstanceQEMU) {
	f.t.Helper()
	f.awaitVM(vm, "run by QEMU "+want.Version, func(vm *godwitv1.VM) bool {
		return want.Equal(fleet.InstanceQEMU{Version: vm.GetQemuVersion(), Capabilities: vm.GetMigrationCapabilities()})
	})
}

// startBy starts a VM on the host of an agent, which says what QEMU runs it.
func (f *testFleet) startBy(agent *fakeAgent, vm string, qemu fleet.InstanceQEMU) {
	f.t.Helper()
	f.create(&godwitv1.CreateVMRequest{Name: vm, Spec: smallSpec(), Host: agent.name})
	agent.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: &godwitv1.Report{
		Subject: vm, Epoch: 1, Sequence: agent.command().GetSequence(),
		Event: &godwitv1.Report_Instance{Instance: by(qemu, vm, lifecycle.Running)},
	}}})
	f.awaitPhase(vm, fleet.VMRunning)
	f.awaitQEMU(vm, qemu)
}

func checkHeld(t *testing.T, m *godwitv1.Migration, held bool, connections uint32) {
	t.Helper()
	if m.GetUnheld() == held || m.GetConnections() != connections {
		t.Errorf("unheld is %t, and it has %d connections since %s", m.GetUnheld(), m.GetConnections(), m.GetConnectionsWhy())
	}
}

// A VM that runs by an older QEMU than its host has by now moves as that one can,
// and later as the one can by which it runs then.
func TestSourceOfAnOlderQEMU(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", upgraded()), f.join("h2", upgraded())
	f.startBy(h1, "web1", oldQEMU)
	fl := f.depart(h1, h2, "web1", testPolicy())
	fl.say(h2, fl.next(h2, "prepare_target"), &godwitv1.Report{Event: &godwitv1.Report_TargetPrepared{TargetPrepared: &godwitv1.TargetPrepared{
		Port: testPort, QemuVersion: newQEMU.Version, MigrationCapabilities: newQEMU.Capabilities,
	}}})
	fl.next(h1, "start_copy")
	f.awaitQEMU("web1", oldQEMU)
	fl.stopSource()
	fl.measure()
	fl.mustCommit()
	f.awaitQEMU("web1", newQEMU)
	checkHeld(t, fl.finish(inRun), false, 1)
	checkHeld(t, f.depart(h2, h1, "web1", testPolicy()).awaitEvent("started"), true, 2)
}

// What an agent says of an instance that it has adopted is known from then on, in a
// migration, too; until then its host's QEMU counts.
func TestQEMUOfAnAdoptedInstance(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", upgraded()), f.join("h2", upgraded())
	f.running(h1, "web1") // by an agent that says nothing of it
	fl := f.depart(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	f.leave(h1)
	h1 = f.join("h1", upgraded(by(oldQEMU, "web1", lifecycle.Paused)))
	f.awaitQEMU("web1", oldQEMU)
	fl.source = h1
	fl.mustCancel()
	checkHeld(t, fl.finish(inResume), true, 2)
	checkHeld(t, f.depart(h1, h2, "web1", testPolicy()).awaitEvent("started"), false, 1)
}

// A VM that has ended is run by no QEMU.
func TestQEMUOfAnEndedInstance(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1 := f.join("h1", upgraded())
	f.startBy(h1, "web1", oldQEMU)
	f.stopVM(h1, "web1")
	f.awaitQEMU("web1", fleet.InstanceQEMU{})
}
