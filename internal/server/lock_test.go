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
	_, err := f.migrate("web1", "")
	if fleet.CodeOf(err) != fleet.Conflict || !strings.HasSuffix(err.Error(), "its state is copying, pass 2, 60MiB of 128MiB left") {
		t.Errorf("migrate: %v", err)
	}
	// A minute by the rate, less what has passed since.
	if after := fleet.RetryAfterOf(err); after < time.Minute-patience || after > time.Minute+testPolicy().Grace {
		t.Errorf("retry after %v", after)
	}
}

// A start waits for no migration when there is nothing left to start.
func TestStartDuringAMigration(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	version := f.vm("web1").GetVersion()
	start := func(host string) error {
		response, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: host})
		if err == nil && response.GetVm().GetVersion() != version {
			t.Errorf("the start has changed the VM: %v", response.GetVm())
		}
		return err
	}
	for _, host := range []string{"", "h1"} {
		if err := start(host); err != nil {
			t.Errorf("start of what runs, at %q: %v", host, err)
		}
	}
	if err := start("h2"); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "it is running on host h1") {
		t.Errorf("start elsewhere: %v", err)
	}
	f.failed("web1")
	if err := start(""); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), fl.id) || fleet.RetryAfterOf(err) <= 0 {
		t.Errorf("start of what has failed: %v", err)
	}
}

// failed records that a VM has failed, and gives the version of that.
func (f *testFleet) failed(name string) int64 {
	f.t.Helper()
	vms := f.server.tables.vms
	entry, err := vms.Get(f.t.Context(), name)
	if err != nil {
		f.t.Fatal(err)
	}
	entry.Value.Phase = fleet.VMFailed
	revision, err := f.store.Commit(f.t.Context(), store.If(vms.At(name, entry.Version)), vms.Put(name, entry.Value))
	if err != nil {
		f.t.Fatal(err)
	}
	return revision
}

// A delete of what is stopped already ends the migration that is in its way, and
// means no other version of the VM than the migration has left behind.
func TestDeleteCancels(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	revision := f.failed("web1")
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

// Who has waited for as long as they would learns when to ask again.
func TestRequestThatHasWaitedLearnsWhenToAskAgain(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inRun)
	r := f.reconciler()
	holder, err := r.newest(t.Context(), "stop", fl.id)
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	end() // it has waited for as long as it could
	_, err = r.awaitEnd(ctx, "stop", migration.StopVM, holder)
	if fleet.CodeOf(err) != fleet.Unavailable || !strings.Contains(err.Error(), fl.id+" has not ended yet") || fleet.RetryAfterOf(err) <= 0 {
		t.Errorf("%v, retry after %v", err, fleet.RetryAfterOf(err))
	}
	fl.finish(inRun)
}

// The answer is on its way before the client gives up.
func TestWaitEndsBeforeTheClientDoes(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for limit, want := range map[time.Duration]time.Duration{
		time.Second: 900 * time.Millisecond, time.Minute: 59 * time.Second,
	} {
		ctx, cancel := context.WithDeadline(t.Context(), now.Add(limit))
		defer cancel()
		earlier, stop := untilAnswer(ctx, now)
		defer stop()
		if got, _ := earlier.Deadline(); !got.Equal(now.Add(want)) {
			t.Errorf("of %v it waits %v, want %v", limit, got.Sub(now), want)
		}
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
