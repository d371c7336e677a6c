package server

import (
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// aborted is a VM on h1 with a migration to h2 that was taken back, and is over.
func aborted(t *testing.T) (fl *flight, uid string) {
	t.Helper()
	f := newFleet(t)
	fl = f.fly(f.join("h1"), f.join("h2"), "web1", testPolicy())
	fl.to(inResume)
	fl.finish(inResume)
	fl.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 1}, "", "h1")
	return fl, f.vm("web1").GetUid()
}

// A host still has the target of a migration that is over. It may have become that
// of the next one when it is told, so it is told which one is meant.
func TestStrayTargetIsNamed(t *testing.T) {
	fl, uid := aborted(t)
	fl.leave(fl.target)
	h2 := fl.join("h2", hasInstances(&godwitv1.InstanceReport{Vm: "web1", Uid: uid, Epoch: 2, State: "incoming", Migration: fl.id}))
	command := h2.command()
	if forget := command.GetForgetInstance(); forget.GetMigration() != fl.id || forget.GetEpoch() != 2 || command.GetUid() != uid || forget.GetUid() != uid {
		t.Errorf("h2 is told %v", command)
	}
}

// An old order has made a VM the source of a migration that is over. None that
// comes later could begin before it goes on alone.
func TestStraySourceGoesOnAlone(t *testing.T) {
	fl, uid := aborted(t)
	fl.leave(fl.source)
	h1 := fl.join("h1", hasInstances(&godwitv1.InstanceReport{Vm: "web1", Uid: uid, Epoch: 1, State: "paused", Migration: fl.id}))
	command := h1.command()
	if command.GetResumeSource() == nil || command.GetSubject() != fl.id || command.GetEpoch() != 1 || command.GetUid() != uid {
		t.Errorf("h1 is told %v", command)
	}
}

// What is left to be done of a migration names the VM that it was of: by then
// another one has its name, on the same host and at the same epoch.
func TestOldOrdersNameTheirVM(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	policy := testPolicy()
	policy.SettleMax = 500 * time.Millisecond
	fl := f.fly(h1, h2, "web1", policy)
	before := f.vm("web1").GetUid()
	fl.to(inRetire)
	fl.measure()
	fl.answer(h1, "retire_source")
	fl.next(h1, "release_source") // carried out, and the answer is lost
	fl.await(migration.Succeeded)
	if _, err := f.vms.Stop(t.Context(), &godwitv1.StopVMRequest{Name: "web1"}); err != nil {
		t.Fatal(describe(err))
	}
	stop := h2.command()
	for strings.HasPrefix(stop.GetSubject(), migrationPrefix) {
		stop = h2.command()
	}
	h2.report(stop, "web1", "exited", "")
	f.awaitPhase("web1", fleet.VMStopped)
	if _, err := f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1"}); err != nil {
		t.Fatal(describe(err))
	}
	vm := f.running(h1, "web1")
	f.reconciler().HostConnected("h1") // and it is told again
	release := h1.command()
	for release.GetReleaseSource() == nil {
		release = h1.command()
	}
	if release.GetUid() != before || release.GetUid() == vm.GetUid() {
		t.Errorf("the new VM is %s at %v; told %v", vm.GetUid(), vm.GetOwner(), release)
	}
}

// A migration is over for its VM before the host of its target has cleaned up. The
// VM is started on that host, at an epoch that the target does not have.
func TestStartWhereATargetIsLeft(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	policy := testPolicy()
	policy.RollbackMax = 500 * time.Millisecond
	fl := f.fly(h1, h2, "web1", policy)
	fl.to(inRelease)
	fl.await(migration.Aborted)
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 1}, "", "h1")
	h1.report(&godwitv1.Command{Epoch: 1}, "web1", "exited", "crashed")
	f.awaitPhase("web1", fleet.VMFailed)
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: "h2"}); err != nil {
		t.Fatal(describe(err))
	}
	f.checkPlace("web1", fleet.Owner{Host: "h2", Epoch: 3}, "", "h2") // the target's is 2
}
