package server

import (
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// localSpec is that of a VM with a local disk.
func localSpec() *godwitv1.VMSpec {
	spec := smallSpec()
	spec.Disks = []*godwitv1.Disk{{Name: "data", Kind: "local", Format: "raw", SizeBytes: uint64(fleet.GiB)}}
	return spec
}

// runLocal starts a VM on a host, which must be told from which epoch on it has its
// disks.
func (f *testFleet) runLocal(agent *fakeAgent, vm string, from uint64) {
	f.t.Helper()
	command := agent.command()
	for opOf(command) != "start_instance" {
		command = agent.command() // of a migration, sent again
	}
	if got := command.GetStartInstance().GetInstance().GetLocalEpoch(); got != from {
		f.t.Errorf("it starts from epoch %d, want %d", got, from)
	}
	agent.report(command, vm, "running", "")
	f.awaitPhase(vm, fleet.VMRunning)
}

func (f *testFleet) stopLocal(agent *fakeAgent, vm string) {
	f.t.Helper()
	if _, err := f.vms.Stop(f.t.Context(), &godwitv1.StopVMRequest{Name: vm}); err != nil {
		f.t.Fatal(err)
	}
	command := agent.command()
	for opOf(command) != "stop_instance" {
		command = agent.command()
	}
	agent.report(command, vm, "exited", "")
	f.awaitPhase(vm, fleet.VMStopped)
}

// checkData holds the record of where a VM's local disks are.
func (f *testFleet) checkData(vm string, want fleet.LocalData) {
	f.t.Helper()
	entry, err := f.server.tables.vms.Get(f.t.Context(), vm)
	if err != nil || !reflect.DeepEqual(entry.Value.Local, want) {
		f.t.Errorf("the disks are %+v, %v; want %+v", entry.Value.Local, err, want)
	}
}

// A VM with local disks starts where they are, they go with it, and when it is deleted
// all hosts that had them are told, as often as it takes.
func TestLocalDisks(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: localSpec(), Host: "h1"})
	f.runLocal(h1, "web1", 0)
	f.checkData("web1", fleet.LocalData{Host: "h1", Epoch: 1})
	fl := f.depart(h1, h2, "web1", testPolicy())
	prepared := usualAnswer("prepare_target")
	prepared.GetTargetPrepared().DiskPort = testPort + 1
	fl.say(h2, fl.next(h2, "prepare_target"), prepared)
	if got := fl.next(h1, "start_copy").GetStartCopy().GetDiskPort(); got != testPort+1 {
		t.Errorf("the disks go to port %d", got)
	}
	fl.say(h1, nil, &godwitv1.Report{At: timestamppb.Now(), Event: &godwitv1.Report_CopyProgress{CopyProgress: &godwitv1.CopyProgress{
		DiskCopiedBytes: uint64(256 * fleet.MiB), DiskTotalBytes: uint64(fleet.GiB), DiskBytesPerSecond: 256 << 20,
	}}})
	f.awaitMigration(fl.id, "its disks' progress", func(m *godwitv1.Migration) bool {
		p := m.GetProgress()
		return p.GetDiskCopiedBytes() == uint64(256*fleet.MiB) && p.GetDiskTotalBytes() == uint64(fleet.GiB) && p.GetEtaMs() == 3000
	})
	f.checkData("web1", fleet.LocalData{Host: "h1", Epoch: 1})
	fl.finish(inCopy)
	f.checkData("web1", fleet.LocalData{Host: "h2", Epoch: 2, Earlier: []fleet.HostName{"h1"}})

	f.stopLocal(h2, "web1")
	_, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: "h1"})
	if fleet.CodeOf(err) != fleet.NoFit || !strings.Contains(err.Error(), "local disks are on h2") {
		t.Errorf("started elsewhere: %v", err)
	}
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1"}); err != nil {
		t.Fatal(describe(err))
	}
	f.runLocal(h2, "web1", 2)
	f.stopLocal(h2, "web1")
	if _, err := f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"}); err != nil {
		t.Fatal(describe(err))
	}
	for _, host := range []*fakeAgent{h1, h2} {
		remove := host.command()
		for opOf(remove) != "remove_disks" {
			remove = host.command()
		}
		host.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: &godwitv1.Report{
			Subject: "web1", Sequence: remove.GetSequence(), Event: &godwitv1.Report_DisksRemoved{DisksRemoved: &godwitv1.DisksRemoved{Uid: remove.GetRemoveDisks().GetUid()}},
		}}})
		f.settled(host)
	}
	if left, _, err := f.server.tables.diskLeftovers.All(t.Context()); err != nil || len(left) > 0 {
		t.Errorf("still to be removed: %v, %v", left, err)
	}
}

// A VM that is given back after the commit has its disks where and as they were.
func TestLocalDisksAreTakenBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	f.create(&godwitv1.CreateVMRequest{Name: "web1", Spec: localSpec(), Host: "h1"})
	f.runLocal(h1, "web1", 0)
	fl := f.depart(h1, h2, "web1", testPolicy())
	fl.to(inRun)
	f.checkData("web1", fleet.LocalData{Host: "h2", Epoch: 2})
	gone := targetFails("it has ended", true)
	gone.GetTargetFailed().Unrun = true
	fl.say(h2, nil, gone)
	fl.await(migration.RollingBack)
	f.checkData("web1", fleet.LocalData{Host: "h1", Epoch: 1})
}
