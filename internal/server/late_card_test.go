package server

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// letGo says that the guest of web1 has let go of the disk that flyWithDisk gave it.
func (a *fakeAgent) letGo(epoch uint64) {
	a.changedBy(&godwitv1.Command{Subject: "web1", Epoch: epoch, Op: &godwitv1.Command_ChangeHardware{
		ChangeHardware: &godwitv1.ChangeHardware{Remove: true, Disk: &godwitv1.Disk{Slot: uint32(fleet.FirstDiskSlot)}},
	}}, "", "")
}

// flyWithDisk begins a migration of web1, which has a disk.
func (f *testFleet) flyWithDisk(h1, h2 *fakeAgent) *flight {
	f.t.Helper()
	f.running(h1, "web1")
	if err := call(f.vms.AddDisk(f.t.Context(), &godwitv1.AddDiskRequest{Name: "web1", Disk: fileDisk("data")})); err != nil {
		f.t.Fatal(describe(err))
	}
	h1.changedBy(h1.command(), "", "")
	f.awaitChange("web1", fleet.ChangeDone)
	if names := disksOf(f.vm("web1")); len(names) != 1 {
		f.t.Fatalf("the disks are %v", names)
	}
	return f.depart(h1, h2, "web1", testPolicy())
}

func (f *testFleet) awaitNoDisk() {
	f.t.Helper()
	f.awaitVM("web1", "without a disk", func(vm *godwitv1.VM) bool { return len(vm.GetSpec().GetDisks()) == 0 })
}

// A source that has its VM back says of which card the guest has let go meanwhile, before
// the migration has ended.
func TestCardGoneBeforeAnAbortEnds(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.flyWithDisk(h1, h2)
	fl.to(inRelease)
	h1.letGo(1)
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	f.awaitNoDisk()
}

// When the VM has moved, what the target says counts.
func TestCardGoneBeforeTheEnd(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.flyWithDisk(h1, h2)
	fl.to(inRetire)
	h2.letGo(2)
	fl.finish(inRetire)
	f.awaitNoDisk()
}

// And not what the source has said.
func TestCardGoneAtTheSource(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.flyWithDisk(h1, h2)
	fl.to(inCopy)
	h1.letGo(1)
	fl.stopSource()
	fl.mustCommit()
	fl.answer(h2, "run_target")
	fl.awaitEvent(migration.TargetRunning)
	fl.finish(inRetire)
	add := &godwitv1.AddDiskRequest{Name: "web1", Disk: fileDisk("more")} // what is held is settled before it is told
	if err := call(f.vms.AddDisk(t.Context(), add)); err != nil {
		t.Fatal(describe(err))
	}
	h2.command()
	if names := disksOf(f.vm("web1")); len(names) != 1 {
		t.Errorf("the disks are %v", names)
	}
}
