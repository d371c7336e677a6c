package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// A request that is blocked learns what it waits for as it is now, and when it
// may come again.
func TestBlockedRequestTellsTheProgress(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	fl.say(h1, nil, &godwitv1.Report{At: timestamppb.Now(), Event: &godwitv1.Report_CopyProgress{CopyProgress: &godwitv1.CopyProgress{
		Pass: 2, RemainingBytes: uint64(60 * fleet.MiB), TotalBytes: uint64(128 * fleet.MiB), BandwidthBytesPerSecond: float64(fleet.MiB),
	}}})
	f.awaitMigration(fl.id, "in pass 2", func(m *godwitv1.Migration) bool { return m.GetProgress().GetPass() == 2 })
	err := call(f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1"}))
	if fleet.CodeOf(err) != fleet.Conflict || !strings.HasSuffix(err.Error(), "its state is copying, pass 2, 60MiB of 128MiB left") {
		t.Errorf("start: %v", err)
	}
	// A minute by the rate, less what has passed since.
	if after := fleet.RetryAfterOf(err); after < time.Minute-patience || after > time.Minute+testPolicy().Grace {
		t.Errorf("retry after %v", after)
	}
}

// A delete of what is stopped already ends the migration that is in its way, and
// means no other version of the VM than the migration has left behind.
func TestDeleteCancels(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	vms := f.server.tables.vms
	entry, err := vms.Get(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	entry.Value.Phase = fleet.VMFailed
	revision, err := f.store.Commit(t.Context(), store.If(vms.At("web1", entry.Version)), vms.Put("web1", entry.Value))
	if err != nil {
		t.Fatal(err)
	}
	var group errgroup.Group
	group.Go(func() error {
		return call(f.vms.Delete(t.Context(), &godwitv1.DeleteVMRequest{Name: "web1", Version: revision}))
	})
	fl.answer(h1, "resume_source")
	fl.answer(h2, "release_target")
	if err := group.Wait(); err != nil {
		t.Fatalf("delete: %s", describe(err))
	}
	if m := fl.await(migration.Aborted); m.GetCause() != "cancelled by server: to delete the VM" {
		t.Errorf("cause %q", m.GetCause())
	}
	if err := call(f.vms.Get(t.Context(), &godwitv1.GetVMRequest{Name: "web1"})); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("after the delete: %v", err)
	}
}

// Nobody is made to wait for an operator, also if they had begun to wait before.
func TestStopDoesNotWaitForAnOperator(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	policy := testPolicy()
	policy.RollbackMax = 300 * time.Millisecond
	fl := f.fly(h1, h2, "web1", policy)
	fl.to(inResume)
	stop := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return call(f.vms.Stop(ctx, &godwitv1.StopVMRequest{Name: "web1"}))
	}
	for _, when := range []string{"while it is rolled back", "once it needs an operator"} {
		err := stop()
		if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "its state is needs-operator") ||
			!strings.Contains(fleet.HintOf(err), "start the agent on h1") || fleet.RetryAfterOf(err) != 0 {
			t.Errorf("%s: %v, hint %q", when, err, fleet.HintOf(err))
		}
	}
	fl.finish(inResume)
	if err := stop(); err != nil {
		t.Errorf("when it has ended: %v", err)
	}
}
