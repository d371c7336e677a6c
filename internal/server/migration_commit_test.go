package server

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

func TestCommitIsRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	f.join("h3")
	cases := []struct {
		name, stage, host string
		epoch             uint64
		code              fleet.Code
		cause             string
	}{
		{"the source asks", inSwitch, "h1", 1, fleet.Denied, "h1 is not its target"},
		{"a stranger asks", inSwitch, "h3", 1, fleet.Denied, "h3 is not its target"},
		{"an older epoch", inSwitch, "h2", 0, fleet.Conflict, "epoch 0"},
		{"a newer epoch", inSwitch, "h2", 2, fleet.Conflict, "epoch 2"},
		{"before the copy", inPrepare, "h2", 1, fleet.Conflict, "it is preparing: the target has no right to run"},
		{"after the abort", inResume, "h2", 1, fleet.Conflict, "it is rolling-back: the target has no right to run"},
		{"after the source has resumed", inRelease, "h2", 1, fleet.Conflict, "it is rolling-back: the target has no right to run"},
	}
	for i, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			fl := f.fly(h1, h2, fmt.Sprintf("web%d", i), testPolicy())
			fl.to(test.stage)
			before := fl.record()
			answer, err := fl.commit(test.host, test.epoch)
			if fleet.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.cause) {
				t.Errorf("answer %v, %v", answer, err)
			}
			if after := fl.record(); after.Committed || after.State != before.State {
				t.Errorf("it is %s (committed: %t), it was %s", after.State, after.Committed, before.State)
			}
			f.checkPlace(fl.vm, fleet.Owner{Host: "h1", Epoch: 1}, fl.id, "h1", "h2")
			fl.finish(test.stage)
		})
	}
	fl := f.follow(h1, h2, "web1", "m-none")
	if _, err := fl.commit("h2", 1); fleet.CodeOf(err) != fleet.Denied {
		t.Errorf("commit of no migration: %v", err)
	}
	if r := f.reconciler(); r.Kept() > len(cases) {
		t.Errorf("%d runs are kept", r.Kept())
	}
}

// A commit that can't be decided is not refused: a target that is refused
// gives up.
func TestCommitWithoutTheStore(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	fl := f.fly(f.join("h1"), f.join("h2"), "web1", testPolicy())
	fl.to(inSwitch)
	// Another server, which has not read the record yet.
	other := newReconciler(f.server.tables, f.server.hub, f.server.addresses, f.server.hub.connected, f.server.foreseer, f.server.log)
	other.CarryOn(t.Context()) // or its timers would outlive the test
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := other.Commit(ctx, "h2", &godwitv1.CommitRequest{Migration: fl.id, Epoch: 1})
	if code := fleet.CodeOf(err); err == nil || code == fleet.Denied || code == fleet.Conflict {
		t.Errorf("it was refused: %v", err)
	}
	fl.finish(inSwitch)
	fl.atTarget(t)
}

// What a target has loaded was sent by a source that has stopped, whose word of
// it may come later, or never.
func TestCommitBeforeTheStopIsTold(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	fl := f.fly(f.join("h1"), f.join("h2"), "web1", testPolicy())
	fl.to(inCopy)
	first, err := fl.commit("h2", 1)
	if err != nil || first.GetEpoch() != 2 {
		t.Fatalf("the commit got %v, %v", first, err)
	}
	fl.say(fl.source, nil, &godwitv1.Report{Event: &godwitv1.Report_SourceStopped{SourceStopped: &godwitv1.SourceStopped{StoppedBy: "qemu"}}})
	// The same answer, however often: the first may be lost on its way.
	for range 3 {
		again, err := fl.commit("h2", 1)
		if err != nil || again.GetEpoch() != 2 || again.GetSequence() != first.GetSequence() {
			t.Errorf("asked again: %v, %v; before %v", again, err, first)
		}
	}
	fl.finish(inRun)
	fl.atTarget(t)
}

// Of a commit and a cancel exactly one wins, also if two servers decide, and
// all records say the same.
func TestCommitAgainstCancel(t *testing.T) {
	t.Parallel()
	const rounds = 24
	one := newFleet(t)
	two := &testFleet{t: t, dir: t.TempDir(), store: one.store}
	two.start(func(c *Config) { c.Socket = filepath.Join(one.dir, "two.sock") })
	h1, h2 := one.join("h1", roomy), one.join("h2", roomy)
	asks := map[bool]godwitv1connect.AgentServiceClient{false: one.asks("h2"), true: two.asks("h2")}
	for i := range rounds {
		one.running(h1, fmt.Sprintf("web%d", i))
	}
	for i := range rounds {
		fl := one.depart(h1, h2, fmt.Sprintf("web%d", i), testPolicy())
		fl.to(inSwitch)
		var answer *godwitv1.CommitResponse
		var commitErr, cancelErr error
		var group errgroup.Group
		start := make(chan struct{})
		group.Go(func() error {
			<-start
			answer, commitErr = askCommit(t.Context(), asks[i%2 == 0], &godwitv1.CommitRequest{Migration: fl.id, Epoch: 1})
			return nil
		})
		group.Go(func() error {
			<-start
			cancelErr = fl.cancel()
			return nil
		})
		close(start)
		_ = group.Wait()
		m := fl.record()
		switch {
		case commitErr == nil && fleet.CodeOf(cancelErr) == fleet.Conflict:
			if !m.Committed || answer.GetEpoch() != 2 {
				t.Fatalf("round %d: the commit got %v; the record is %s", i, answer, m.State)
			}
			one.checkPlace(fl.vm, fleet.Owner{Host: "h2", Epoch: 2}, fl.id, "h1", "h2")
		case cancelErr == nil && fleet.CodeOf(commitErr) == fleet.Conflict:
			if m.Committed || m.State != migration.RollingBack {
				t.Fatalf("round %d: cancelled, but the record is %s (committed: %t)", i, m.State, m.Committed)
			}
			one.checkPlace(fl.vm, fleet.Owner{Host: "h1", Epoch: 1}, fl.id, "h1", "h2")
			fl.finish(inResume)
			fl.atSource(t)
		default:
			t.Fatalf("round %d: commit %v, cancel %v", i, commitErr, cancelErr)
		}
	}
}

// A commit changes nothing but the owner of a VM that somebody else has written
// since the server last read it.
func TestCommitKeepsWhatOthersWrote(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	fl := f.fly(f.join("h1"), f.join("h2"), "web1", testPolicy())
	fl.to(inSwitch)
	entry, err := f.server.tables.vms.Get(t.Context(), fl.vm)
	if err != nil {
		t.Fatal(err)
	}
	entry.Value.Cause = "written by another server"
	_, err = f.store.Commit(t.Context(), store.If(f.server.tables.vms.At(fl.vm, entry.Version)), f.server.tables.vms.Put(fl.vm, entry.Value))
	if err != nil {
		t.Fatal(err)
	}
	fl.mustCommit()
	after, err := f.server.tables.vms.Get(t.Context(), fl.vm)
	if err != nil {
		t.Fatal(err)
	}
	if want := (fleet.Owner{Host: "h2", Epoch: 2}); after.Value.Owner != want || after.Value.Cause != entry.Value.Cause {
		t.Errorf("the record has owner %v and cause %q", after.Value.Owner, after.Value.Cause)
	}
}

// awaitWatcher polls, since a wait leaves no trace outside of the process.
func awaitWatcher(t *testing.T, r *reconciler, id string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		if r.Watched(fleet.MigrationID(id)) {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("nobody waits")
		}
	}
}

// A target that opens its line early is told when the source has stopped, and
// gets its answer when it has loaded.
func TestLineToTheCommit(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	fl := f.fly(f.join("h1"), f.join("h2"), "web1", testPolicy())
	fl.to(inCopy)
	line := fl.line("h2")
	stopped := make(chan error, 1)
	go func() {
		first, err := line.Receive()
		if err == nil && !first.GetSourceStopped() {
			err = fmt.Errorf("the first answer is %v", first)
		}
		stopped <- err
	}()
	awaitWatcher(t, f.reconciler(), fl.id)
	fl.stopSource()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if state := fl.record().State; state != migration.Switching {
		t.Errorf("it is %s before the target has loaded", state)
	}
	if err := line.Send(&godwitv1.CommitRequest{Migration: fl.id, Epoch: 1, Loaded: true}); err != nil {
		t.Fatal(err)
	}
	if answer, err := line.Receive(); err != nil || answer.GetEpoch() != 2 {
		t.Fatalf("commit: %v, %v", answer, err)
	}
	fl.finish(inSwitch)
	fl.atTarget(t)
}

// The line of a target that is not needed any more ends by itself.
func TestLineEndsWithTheMigration(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	fl := f.fly(f.join("h1"), f.join("h2"), "web1", testPolicy())
	fl.to(inCopy)
	line := fl.line("h2")
	awaitWatcher(t, f.reconciler(), fl.id)
	fl.mustCancel()
	fl.finish(inResume)
	if answer, err := line.Receive(); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("the line of an aborted migration ended with %v, %v", answer, err)
	}
	fl.atSource(t)
}
