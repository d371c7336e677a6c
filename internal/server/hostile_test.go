package server

import (
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// What a host says is written into records. Whatever it is, they must still be
// written and read: a migration whose record cannot be has no end.
func TestRecordsBearWhatHostsSay(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", func(o *agentOptions) {
		roomy(o)
		edit := o.hello
		o.hello = func(h *godwitv1.Hello) {
			edit(h)
			h.Host.MemoryBytes = math.MaxUint64
		}
	})
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	for _, rate := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1, math.MaxFloat64} {
		fl.say(h1, nil, &godwitv1.Report{Event: &godwitv1.Report_CopyProgress{CopyProgress: &godwitv1.CopyProgress{
			Pass: math.MinInt32, PassBegins: true, SentBytes: math.MaxUint64, RemainingBytes: math.MaxUint64, TotalBytes: math.MaxUint64 - 1,
			DirtyBytesPerSecond: rate, BandwidthBytesPerSecond: rate,
		}}})
	}
	long := strings.Repeat("x", 20<<10)
	fl.say(h1, nil, &godwitv1.Report{Event: &godwitv1.Report_SourceStopped{SourceStopped: &godwitv1.SourceStopped{StoppedBy: long}}})
	fl.await(migration.Switching)
	never := &timestamppb.Timestamp{Seconds: math.MaxInt64, Nanos: math.MinInt32}
	fl.say(h1, fl.copying, &godwitv1.Report{Event: &godwitv1.Report_SwitchMeasured{SwitchMeasured: &godwitv1.SwitchMeasured{
		StoppedBy: long, DrainError: long, SentBytes: math.MaxUint64, FramesDrained: math.MinInt64,
		Marks: &godwitv1.SourceMarks{GateFlipped: never, Stopped: never, PreSwitchover: never, Continued: never, Drained: never, Completed: never},
	}}})
	fl.mustCommit()
	running := fl.next(h2, "run_target")
	fl.say(h2, running, &godwitv1.Report{Event: &godwitv1.Report_TargetRunning{TargetRunning: &godwitv1.TargetRunning{
		Marks: &godwitv1.TargetMarks{Loaded: never, Asked: never, Answered: never, Resumed: never},
	}}})
	fl.copying = nil // it is answered
	fl.answer(h1, "retire_source")
	fl.answer(h1, "release_source")
	fl.answer(h2, "finish_target")
	fl.await(migration.Succeeded)
	fl.atTarget(t)
	for _, text := range []string{fl.record().SourceMarks.StoppedBy, fl.record().SourceMarks.DrainError, fl.record().Story[3].Detail} {
		if len(text) > 2*wire.ErrorMax {
			t.Errorf("the record has a text of %d bytes from a host", len(text))
		}
	}
	f.server.migrationsReadable(t)
}

// migrationsReadable reads all records that every start of a server reads.
func (s *Server) migrationsReadable(t *testing.T) {
	t.Helper()
	if _, _, err := s.tables.migrations.All(t.Context()); err != nil {
		t.Error(err)
	}
	if _, _, err := s.tables.hosts.All(t.Context()); err != nil {
		t.Error(err)
	}
}

// A host may say anything of migrations that are not: nothing of it stays in
// the server's memory.
func TestUnknownMigrationsLeaveNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1 := f.join("h1")
	for _, id := range []string{"m-none", "m-" + strings.Repeat("x", 10<<10), "m-\x00", "m-../vms/web1"} {
		h1.say(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: &godwitv1.Report{
			Subject: id, Event: &godwitv1.Report_SourceStopped{SourceStopped: &godwitv1.SourceStopped{}},
		}}})
		if _, err := askCommit(t.Context(), f.asks("h1"), &godwitv1.CommitRequest{Migration: id, Epoch: 1}); err == nil {
			t.Errorf("the commit of %.20q was answered", id)
		}
	}
	f.settled(h1)
	if n := f.reconciler().Kept(); n != 0 {
		t.Errorf("%d migrations are kept in memory that do not exist", n)
	}
}

// A record that cannot be read must not keep the others from being carried on.
func TestDamagedRecordStopsItsOwnMigrationOnly(t *testing.T) {
	f := newFleet(t)
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	f.stop()
	damaged := f.server.tables.migrations.Key("m-damaged")
	if _, err := f.store.Commit(t.Context(), nil, store.Put(damaged, []byte(`{"id":"m-damaged","state":`))); err != nil {
		t.Fatal(err)
	}
	f.start()
	fl.source, fl.target = f.join("h1"), f.join("h2")
	fl.stopSource()
	fl.mustCommit()
	fl.answer(fl.target, "run_target")
	fl.measure()
	fl.answer(fl.source, "retire_source")
	fl.answer(fl.source, "release_source")
	fl.answer(fl.target, "finish_target")
	fl.await(migration.Succeeded)
	fl.atTarget(t)
}
