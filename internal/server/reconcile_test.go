package server

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

func TestCancel(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	cases := []struct {
		stage  string
		resume bool // the source was copying
	}{{inPrepare, false}, {inCopy, true}, {inSwitch, true}}
	for i, test := range cases {
		t.Run(test.stage, func(t *testing.T) {
			fl := f.fly(h1, h2, fmt.Sprintf("web%d", i), testPolicy())
			fl.to(test.stage)
			if test.stage == inPrepare {
				fl.next(h2, "prepare_target") // and does not answer
			}
			fl.mustCancel()
			f.checkPlace(fl.vm, fleet.Owner{Host: "h1", Epoch: 1}, fl.id, "h1", "h2")
			fl.mustCancel() // asking again changes nothing
			if test.resume {
				if command := fl.answer(h1, "resume_source"); command.GetResumeSource().GetVm() != fl.vm {
					t.Errorf("resume: %v", command)
				}
			}
			release := fl.next(h2, "release_target")
			if r := release.GetReleaseTarget(); r.GetVm() != fl.vm || r.GetSourceAddress() != "10.9.0.1" || r.GetReturnFrames() != test.resume {
				t.Errorf("release: %v", release)
			}
			fl.say(h2, release, &godwitv1.Report{Event: &godwitv1.Report_TargetReleased{TargetReleased: &godwitv1.TargetReleased{FramesReturned: 7, ReturnError: "no way back"}}})
			m := fl.await(migration.Aborted)
			if m.GetCause() != "cancelled by operator: changed my mind" || m.GetOutcome().GetFramesReturned() != 7 || m.GetOutcome().GetReturnError() != "no way back" || m.GetEnded() == nil {
				t.Errorf("it ended with %v", m)
			}
			fl.atSource(t)
			if err := fl.cancel(); fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "it has ended already: aborted") {
				t.Errorf("cancel at the end: %v", err)
			}
		})
	}
	fl := f.fly(h1, h2, "late", testPolicy())
	fl.to(inRun)
	err := fl.cancel()
	if fleet.CodeOf(err) != fleet.Conflict || !strings.Contains(err.Error(), "late belongs to h2") || !strings.Contains(fleet.HintOf(err), "godwit migrate late --to h1") {
		t.Errorf("cancel after the commit: %v, hint %q", err, fleet.HintOf(err))
	}
	fl.finish(inRun)
	fl.atTarget(t)
}

func TestFailuresBeforeTheCommit(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	cases := []struct {
		name, stage string
		from        *fakeAgent
		report      *godwitv1.Report
		resume      bool
		cause       string
	}{
		{"the target can't prepare", inPrepare, h2, targetFails("disk /srv/d is missing", true), false, "h2: disk /srv/d is missing"},
		{"the target dies in the copy", inCopy, h2, targetFails("QEMU was killed", true), true, "h2: QEMU was killed"},
		{"the target fails in the switch", inSwitch, h2, targetFails("bad device state", false), true, "h2: bad device state"},
		{"the source can't copy", inCopy, h1, sourceFails("no route", false), true, "h1: no route"},
		{"the source fails in the switch", inSwitch, h1, sourceFails("channel broke", false), true, "h1: channel broke"},
		{"the source is gone in the preparation", inPrepare, h1, sourceFails("it ended", true), false, "h1: it ended"},
	}
	for i, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			fl := f.fly(h1, h2, fmt.Sprintf("web%d", i), testPolicy())
			fl.to(test.stage)
			if test.stage == inPrepare {
				fl.next(h2, "prepare_target")
			}
			fl.say(test.from, nil, test.report)
			if test.resume {
				fl.answer(h1, "resume_source")
			}
			fl.answer(h2, "release_target")
			if m := fl.await(migration.Aborted); m.GetCause() != test.cause {
				t.Errorf("cause %q, want %q", m.GetCause(), test.cause)
			}
			fl.atSource(t)
			if left := fl.record().Pending; len(left) != 0 {
				t.Errorf("pending: %v", left)
			}
		})
	}
}

// A source that died in the switch may have sent everything.
func TestSourceGoneInTheSwitch(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inSwitch)
	fl.say(h1, nil, sourceFails("host lost power", true))
	fl.awaitEvent(migration.SourceFailed)
	fl.finish(inSwitch)
	fl.atTarget(t)

	policy := testPolicy()
	policy.SwitchMax = 400 * time.Millisecond
	fl = f.fly(h1, h2, "web2", policy)
	fl.to(inSwitch)
	fl.say(h1, nil, sourceFails("host lost power", true))
	fl.answer(h2, "release_target") // nobody is asked to resume
	if m := fl.await(migration.Aborted); m.GetCause() != "h1: host lost power; the switch was not committed in time" {
		t.Errorf("cause %q", m.GetCause())
	}
}

func TestTargetGoneAfterTheCommit(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inRun)
	fl.next(h2, "run_target")
	fl.say(h2, nil, targetFails("QEMU was killed", true)) // and may have run before
	m := fl.await(migration.NeedsOperator)
	if !strings.Contains(m.GetCause(), "ended after the commit: QEMU was killed") || len(m.GetRemedies()) == 0 {
		t.Errorf("cause %q, remedies %q", m.GetCause(), m.GetRemedies())
	}
	// Never back to the source, which is an epoch behind.
	f.checkPlace("web1", fleet.Owner{Epoch: 3}, "")
	fl.answer(h1, "release_source")
	fl.answer(h2, "release_target")
	// The remedy works.
	if _, err := f.vms.Start(t.Context(), &godwitv1.StartVMRequest{Name: "web1", Host: "h1"}); err != nil {
		t.Errorf("%s: %v", m.GetRemedies()[0], err)
	}
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 4}, "", "h1")
}

// A source that is gone in the copy may have been further than its last word.
func TestSourceGoneInTheCopy(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	fl.say(h1, nil, sourceFails("it ended", true))
	fl.awaitEvent(migration.SourceFailed)
	fl.finish(inSwitch)
	fl.atTarget(t)

	fl = f.fly(h1, h2, "web2", testPolicy())
	fl.to(inCopy)
	fl.say(h1, nil, sourceFails("it ended", true))
	fl.awaitEvent(migration.SourceFailed)
	h1.report(&godwitv1.Command{Epoch: 1}, "web2", "exited", "it ended")
	fl.say(h2, nil, targetFails("the stream broke off", false))
	release := fl.next(h2, "release_target") // nobody is asked to resume
	select {
	case command := <-h1.commands: // it might be needed yet
		t.Errorf("command %v before the migration is over", command)
	default:
	}
	fl.say(h2, release, usualAnswer("release_target"))
	if m := fl.await(migration.Aborted); m.GetCause() != "h1: it ended; h2: the stream broke off" {
		t.Errorf("cause %q", m.GetCause())
	}
	checkForgets(t, h1.command(), "web2", 1)
}

// A target that was never heard of after the commit: its host is off for good,
// and an operator says so.
func TestReturnAfterTheTargetsHostIsOff(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	policy := testPolicy()
	policy.SettleMax, policy.RollbackMax = 300*time.Millisecond, 3*time.Second
	fl := f.fly(h1, h2, "web1", policy)
	ask := func(host string) error {
		_, err := f.moves.Return(t.Context(), &godwitv1.ReturnMigrationRequest{Id: fl.id, HostIsOff: host})
		return err
	}
	fl.to(inCopy)
	if err := ask("h2"); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("returned before the commit: %v", err)
	}
	fl.mustCommit()
	m := fl.await(migration.NeedsOperator)
	f.checkPlace("web1", fleet.Owner{Host: "h2", Epoch: 2}, fl.id, "h1", "h2")
	if want := "godwit migration return " + fl.id + " --host-is-off h2"; len(m.GetRemedies()) != 3 || !strings.Contains(m.GetRemedies()[1], want) {
		t.Errorf("remedies %q", m.GetRemedies())
	}
	if err := ask("h2"); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("returned while h2 has a session: %v", err)
	}
	h2.close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); f.server.hub.connected("h2"); {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("h2's session goes on")
		}
	}
	if err := ask("h1"); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("returned with another host named: %v", err)
	}
	if err := ask("h2"); err != nil {
		t.Fatal(err)
	}
	fl.answer(h1, "resume_source")
	fl.await(migration.Aborted)
	f.checkPlace("web1", fleet.Owner{Host: "h1", Epoch: 3}, "", "h1")
}

// A target that never ran gives the VM back to its source, at a new epoch.
func TestTakenBack(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	for name, word := range map[string]struct {
		from   *fakeAgent
		report *godwitv1.Report
	}{
		"web1": {h2, &godwitv1.Report{Event: &godwitv1.Report_TargetRefused{TargetRefused: &godwitv1.TargetRefused{Cause: "h1 asked"}}}},
		"web2": {h1, &godwitv1.Report{Event: &godwitv1.Report_SourceRanOn{SourceRanOn: &godwitv1.SourceRanOn{Cause: "h2 gave up"}}}},
		"web3": {h2, &godwitv1.Report{Event: &godwitv1.Report_TargetFailed{TargetFailed: &godwitv1.TargetFailed{Cause: "QEMU was killed", Gone: true, Unrun: true}}}},
	} {
		fl := f.fly(h1, h2, name, testPolicy())
		fl.to(inRun)
		fl.next(h2, "run_target")
		fl.say(word.from, nil, word.report)
		fl.await(migration.RollingBack)
		f.checkPlace(name, fleet.Owner{Host: "h1", Epoch: 3}, fl.id, "h1", "h2")
		if got := fl.answer(h1, "resume_source").GetResumeSource().GetNewEpoch(); got != 3 {
			t.Errorf("%s: resumed at epoch %d, want 3", name, got)
		}
		fl.answer(h2, "release_target")
		fl.await(migration.Aborted)
		f.checkPlace(name, fleet.Owner{Host: "h1", Epoch: 3}, "", "h1")
	}
}

func TestDeadlines(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	cases := []struct {
		stage, cause string
		limit        func(*migration.Policy) *time.Duration
	}{
		{inPrepare, "the target was not prepared in time", func(p *migration.Policy) *time.Duration { return &p.PrepareMax }},
		{inCopy, "the copy did not converge in time", func(p *migration.Policy) *time.Duration { return &p.CopyMax }},
		{inSwitch, "the switch was not committed in time", func(p *migration.Policy) *time.Duration { return &p.SwitchMax }},
	}
	for i, test := range cases {
		t.Run(test.stage, func(t *testing.T) {
			policy := testPolicy()
			*test.limit(&policy) = 350 * time.Millisecond
			fl := f.fly(h1, h2, fmt.Sprintf("web%d", i), policy)
			fl.to(test.stage)
			if test.stage == inPrepare {
				fl.next(h2, "prepare_target")
			} else {
				fl.answer(h1, "resume_source")
			}
			fl.answer(h2, "release_target")
			if m := fl.await(migration.Aborted); m.GetCause() != test.cause {
				t.Errorf("cause %q", m.GetCause())
			}
			fl.atSource(t)
		})
	}
}

// A target that does not answer does not hold the VM; it cleans up when it
// returns.
func TestTargetThatStaysAway(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	policy := testPolicy()
	policy.RollbackMax = 200 * time.Millisecond
	fl := f.fly(h1, h2, "web1", policy)
	fl.to(inCopy)
	h2.close()
	fl.mustCancel()
	fl.answer(h1, "resume_source")
	m := fl.await(migration.Aborted)
	if !strings.HasSuffix(m.GetCause(), "h2 did not answer in time and will clean up on return") {
		t.Errorf("cause %q", m.GetCause())
	}
	fl.atSource(t)
	f.stop()
	f.start() // a server that starts later knows of it, too
	h2 = f.join("h2")
	fl.answer(h2, "release_target")
	f.settled(h2) // a watch of what is over tells only how it is
	fl.awaitEvent(migration.TargetReleased)
	if left := fl.record().Pending; len(left) != 0 {
		t.Errorf("pending: %v", left)
	}
}

// noSessions is another server's, to which no host is connected.
type noSessions struct{}

func (noSessions) Send(host fleet.HostName, _ *godwitv1.Command) error {
	return &fleet.Error{Code: fleet.Unavailable, Op: "command", Subject: "host " + string(host)}
}

// What another server has saved, or this one in a save that seemed to fail, is
// found when the next save conflicts, and its effects are dispatched.
func TestSavesThatWereNotSeen(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	other := newReconciler(f.server.tables, noSessions{}, f.server.addresses, f.server.hub.connected, f.server.foreseer, f.server.log)
	other.CarryOn(t.Context()) // or its timers would outlive the test
	prepare := fl.next(h2, "prepare_target")
	prepared := migration.Event{Kind: migration.TargetPrepared, From: "h2", Answers: prepare.GetSequence(), Port: testPort}
	if _, verdict, err := other.Advance(t.Context(), fleet.MigrationID(fl.id), prepared); err != nil || verdict != migration.Act {
		t.Fatalf("the other server: %s, %v", verdict, err)
	}
	fl.say(h2, prepare, usualAnswer("prepare_target"))
	fl.next(h1, "start_copy")
	stopped := migration.Event{Kind: migration.SourceStopped, From: "h1"}
	loaded := migration.Event{Kind: migration.TargetLoaded, From: "h2"}
	for _, event := range []migration.Event{stopped, loaded} {
		if _, verdict, err := other.Advance(t.Context(), fleet.MigrationID(fl.id), event); err != nil || verdict != migration.Act {
			t.Fatalf("the other server: %s, %v", verdict, err)
		}
	}
	fl.mustCommit()
	fl.finish(inRun)
	fl.atTarget(t)
}

// The word that the source has stopped may be lost; that it has sent
// everything says so, too, and is kept.
func TestMeasurementInsteadOfTheStop(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	policy := testPolicy()
	policy.SwitchMax = 400 * time.Millisecond
	fl := f.fly(h1, h2, "web1", policy)
	fl.answer(h2, "prepare_target")
	fl.say(h1, fl.next(h1, "start_copy"), switchMeasured(time.Now()))
	fl.await(migration.Switching)
	if m := fl.record(); m.State != migration.Switching || m.SourceMarks == nil {
		t.Errorf("stored is %s with marks %v", m.State, m.SourceMarks)
	}
	fl.answer(h1, "resume_source") // at the deadline of the switch, not of the copy
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	fl.atSource(t)
}

// What the source measured may come after the end.
func TestLateMeasurement(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.answer(h2, "prepare_target")
	start := fl.next(h1, "start_copy")
	fl.copying = nil // not answered in time
	fl.finish(inCopy)
	fl.say(h1, start, switchMeasured(time.Now()))
	fl.awaitMigrationRecord(func(m migration.Migration) bool { return m.SourceMarks != nil && len(m.Pending) == 0 })
	f.settled(h1)
	if r := f.reconciler(); r.Kept() != 0 {
		t.Errorf("%d runs are kept for migrations that are over", r.Kept())
	}
}

// awaitMigrationRecord waits until the stored record is as wanted.
func (fl *flight) awaitMigrationRecord(wanted func(migration.Migration) bool) {
	fl.t.Helper()
	ctx, cancel := context.WithTimeout(fl.t.Context(), patience)
	defer cancel()
	table := fl.server.tables.migrations
	_, revision, err := table.All(ctx)
	if err != nil {
		fl.t.Fatal(err)
	}
	watch := table.Watch(ctx, revision)
	if wanted(fl.record()) {
		return
	}
	for event := range watch.Events() {
		if entry, err := table.Decode(event.Record); err == nil && string(entry.Value.ID) == fl.id && wanted(entry.Value) {
			return
		}
	}
	fl.t.Fatalf("the record of %s is %+v", fl.id, fl.record())
}

// A target that prepares by an old command, after its migration was aborted and
// it was released, is released once more: nobody else would ever.
func TestPreparedAfterTheAbort(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	prepare := fl.next(h2, "prepare_target")
	fl.mustCancel()
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	f.settled(h2)
	fl.say(h2, prepare, usualAnswer("prepare_target"))
	if again := h2.command(); again.GetReleaseTarget().GetVm() != "web1" || again.GetSubject() != fl.id {
		t.Errorf("h2 is told %v", again)
	}
}

func TestReportsOfStrangersDoNotMoveAMigration(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2, h3 := f.join("h1"), f.join("h2"), f.join("h3")
	fl := f.fly(h1, h2, "web1", testPolicy())
	prepare := fl.next(h2, "prepare_target")
	wrong := &godwitv1.Command{Sequence: prepare.GetSequence() + 7}
	fl.say(h3, prepare, usualAnswer("prepare_target"))
	fl.say(h1, prepare, usualAnswer("prepare_target")) // the target's to say
	fl.say(h2, wrong, usualAnswer("prepare_target"))
	fl.say(h2, nil, sourceFails("not its own side", true))
	for _, agent := range []*fakeAgent{h1, h2, h3} {
		f.settled(agent)
	}
	said := func(entry migration.Entry) bool {
		return entry.Event != migration.Started && entry.Event != migration.GuestMeasured
	}
	if m := fl.record(); m.State != migration.Preparing || slices.ContainsFunc(m.Story, said) {
		t.Errorf("it is %s, story %v", m.State, m.Story)
	}
	fl.say(h2, prepare, usualAnswer("prepare_target"))
	fl.next(h1, "start_copy")
	fl.say(h2, prepare, usualAnswer("prepare_target")) // repeated
	fl.finish(inCopy)
	fl.atTarget(t)
}
