package server

import (
	"crypto/tls"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
)

// setAhead makes the stored record of a migration one that a server has written
// whose clock is ahead of this one's.
func (fl *flight) setAhead(ahead time.Duration) {
	fl.t.Helper()
	table := fl.server.tables.migrations
	entry, err := table.Get(fl.t.Context(), fl.id)
	if err != nil {
		fl.t.Fatal(err)
	}
	m := entry.Value
	m.Created = m.Created.Add(ahead)
	m.Timer.At = m.Timer.At.Add(ahead)
	for i := range m.Story {
		m.Story[i].At = m.Story[i].At.Add(ahead)
	}
	if _, err := fl.store.Commit(fl.t.Context(), store.If(table.At(entry.Name, entry.Version)), table.Put(entry.Name, m)); err != nil {
		fl.t.Fatal(err)
	}
}

// A server takes over from one whose clock is an hour from its own. No deadline
// is over because of that, and none is put off beyond its whole time.
func TestTakeOverFromAnotherClock(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{-time.Hour, time.Hour} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
			inTime := f.fly(h1, h2, "web1", testPolicy())
			inTime.to(inSwitch)
			short := testPolicy()
			short.SwitchMax, short.BlackoutMax = 2*time.Second, time.Second
			late := f.fly(h1, h2, "web2", short)
			late.to(inCopy)
			late.stopSource()
			f.stop()
			inTime.setAhead(ahead)
			late.setAhead(ahead)
			f.start()
			took := time.Now()
			h1, h2 = f.join("h1", roomy), f.join("h2", roomy)
			inTime.source, inTime.target, late.source, late.target = h1, h2, h1, h2
			late.awaitEvent(migration.TimerFired)
			if after := time.Since(took); after < time.Second {
				t.Errorf("the switch was given up %v after the take-over", after)
			}
			late.answer(h1, "resume_source")
			late.answer(h2, "release_target")
			late.await(migration.Aborted)
			inTime.finish(inSwitch)
			inTime.atTarget(t)
			if m := inTime.await(migration.Succeeded); m.GetOutcome().GetSettledMs() < 0 {
				t.Errorf("it took %v ms", m.GetOutcome().GetSettledMs())
			}
		})
	}
}

// The figures of a migration are right although a host's clock is an hour off,
// and say that it is.
func TestHostsWithClocksApart(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
	for i, ahead := range []time.Duration{-time.Hour, time.Hour} {
		fl := f.fly(h1, h2, fmt.Sprintf("web%d", i), testPolicy())
		fl.to(inSwitch)
		fl.mustCommit()
		began := time.Now()
		at := func(ms int, by time.Duration) *timestamppb.Timestamp {
			return timestamppb.New(began.Add(time.Duration(ms)*time.Millisecond + by))
		}
		fl.say(h1, fl.copying, &godwitv1.Report{Event: &godwitv1.Report_SwitchMeasured{SwitchMeasured: &godwitv1.SwitchMeasured{
			StoppedBy: "agent", Marks: &godwitv1.SourceMarks{
				GateFlipped: at(0, 0), Stopped: at(1, 0), PreSwitchover: at(2, 0), Continued: at(3, 0), Completed: at(23, 0), Drained: at(24, 0),
			},
		}}})
		fl.copying = nil
		run := fl.next(h2, "run_target")
		fl.say(h2, run, &godwitv1.Report{Event: &godwitv1.Report_TargetRunning{TargetRunning: &godwitv1.TargetRunning{Marks: &godwitv1.TargetMarks{
			Loaded: at(22, ahead), Asked: at(23, ahead), Answered: at(25, ahead), Resumed: at(26, ahead),
		}}}})
		fl.answer(h1, "retire_source")
		fl.answer(h1, "release_source")
		fl.answer(h2, "finish_target")
		out := fl.await(migration.Succeeded).GetOutcome()
		if ms := out.GetBlackoutMs(); ms < 24 || ms > 27 {
			t.Errorf("%v ahead: a blackout of %v ms, want 25", ahead, ms)
		}
		if ms := out.GetClocksApartMs() - milliseconds(ahead); ms < -2 || ms > 2 {
			t.Errorf("%v ahead is taken for %v ms", ahead, out.GetClocksApartMs())
		}
		if total := out.GetTotalMs(); total < 0 || total > milliseconds(patience) {
			t.Errorf("%v ahead: %v ms in all", ahead, total)
		}
	}
}

// A host whose clock is an hour off can call a server that has just made its
// certificates.
func TestHostOfAnotherClockConnects(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	for _, ahead := range []time.Duration{-time.Hour, time.Hour} {
		config := f.clientConfig(f.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}, 0))
		config.Time = func() time.Time { return time.Now().Add(ahead) }
		conn, err := tls.Dial("tcp", f.server.Addr().String(), config)
		if err != nil {
			t.Errorf("a host whose clock is %v ahead: %v", ahead, err)
			continue
		}
		conn.Close()
	}
}
