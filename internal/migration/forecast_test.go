package migration

import (
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

// easy and hopeless are guests of a GiB, over a link of 100 MiB/s.
var (
	easy     = guestDirtying(fleet.MiB)
	hopeless = guestDirtying(fleet.GiB)
)

func guestDirtying(inASecond fleet.Bytes) Measured {
	return Measured{
		Guest: predict.Guest{Memory: fleet.GiB, Curve: predict.Curve{{After: time.Second, Dirty: inASecond}}},
		Link:  predict.Link{Rate: 100 << 20}, LinkWhy: "probed", Began: epochZero,
	}
}

// at plays events in turn: those without a time a second after the one before.
func at(t *testing.T, m Migration, events ...Event) Migration {
	t.Helper()
	for _, e := range events {
		if e.At.IsZero() {
			e.At = epochZero.Add(time.Duration(len(m.Story)) * time.Second)
		}
		for _, effect := range m.Pending {
			if effect.Kind == answers[e.Kind] {
				e.Answers = effect.Sequence
			}
		}
		next, _, verdict := Step(m, e)
		if verdict != Act {
			t.Fatalf("%s in %s is %s", e.Kind, m.State, verdict)
		}
		m = next
	}
	return m
}

func measuredAs(what Measured) Event {
	return Event{Kind: GuestMeasured, From: "server", Measured: what}
}

// again is another measurement, a moment after.
func again(what Measured) Event {
	what.Began = what.Began.Add(5 * time.Second)
	return measuredAs(what)
}

func begun() Event    { return Event{Kind: Started, From: "server"} }
func prepared() Event { return Event{Kind: TargetPrepared, From: "h2"} }

// passBegins is the report of a pass over memory of which that much is left, by a
// source's clock that is an hour from the server's.
func passBegins(number int, after time.Duration, sent, left fleet.Bytes) Event {
	return Event{Kind: CopyProgressed, From: "h1", At: epochZero.Add(10*time.Second + after), Progress: Progress{
		At: epochZero.Add(time.Hour + after), Elapsed: time.Second + after, Pass: number, PassBegins: true, Sent: sent, Remaining: left, Total: fleet.GiB,
	}}
}

func TestCopyWaitsForTheForecast(t *testing.T) {
	m := foreseen(newMigration())
	m = at(t, m, begun(), prepared())
	if m.State != Preparing {
		t.Fatalf("prepared, not measured: %s", m.State)
	}
	m = at(t, m, measuredAs(easy))
	if m.State != Copying || len(m.Foreseen.Forecasts) != 1 || m.Foreseen.Forecasts[0].Probability < 0.99 {
		t.Fatalf("measured: %s, %+v", m.State, m.Foreseen)
	}
	m = at(t, foreseen(newMigration()), measuredAs(easy), begun())
	if m = at(t, m, prepared()); m.State != Copying {
		t.Errorf("measured before it was prepared: %s", m.State)
	}
	failed := Measured{Failure: "its agent does not answer", Link: easy.Link, Guest: predict.Guest{Memory: fleet.GiB}}
	m = at(t, foreseen(newMigration()), begun(), measuredAs(failed), prepared())
	if m.State != Copying || m.Foreseen.Unmeasured == "" || m.Foreseen.Forecasts[0].Known {
		t.Errorf("not measured: %s, %+v", m.State, m.Foreseen)
	}
}

// TestPredictedFailure: a single low forecast is looked at again, and nothing is
// copied of what is given up.
func TestPredictedFailure(t *testing.T) {
	m := at(t, foreseen(newMigration()), begun(), prepared(), measuredAs(hopeless))
	if m.State != Preparing || !m.Foreseen.Awaited {
		t.Fatalf("after one low forecast: %s, awaited %v", m.State, m.Foreseen.Awaited)
	}
	if better := at(t, m, again(easy)); better.State != Copying {
		t.Errorf("the second forecast is good: %s", better.State)
	}
	if same := at(t, m, measuredAs(hopeless)); same.State != Copying {
		t.Errorf("the same measurement once more: %s", same.State)
	}
	lost := hopeless
	lost.Failure, lost.Link = "its agent does not answer", predict.Link{}
	alone := at(t, m, again(lost), passBegins(1, 0, 0, fleet.GiB))
	if alone.State != Copying || alone.Foreseen.Link.Rate == 0 {
		t.Errorf("the second measurement failed, and the first predicts a failure alone: %s, %+v", alone.State, alone.Foreseen)
	}
	m = at(t, m, again(hopeless))
	if m.State != RollingBack || !m.Foreseen.Failed || m.CopyStarted {
		t.Fatalf("after two: %s, %+v", m.State, m.Foreseen)
	}
	for _, part := range []string{"predicted to fail", "the link leaves 100MiB/s", "limit 300ms"} {
		if !strings.Contains(m.Cause, part) {
			t.Errorf("the cause does not say %q: %s", part, m.Cause)
		}
	}
	planned := at(t, foreseen(newMigration()), measuredAs(hopeless), again(hopeless))
	if planned.State != Aborted {
		t.Errorf("before anything was done: %s", planned.State)
	}
}

func TestGoOnWhateverIsPredicted(t *testing.T) {
	m := foreseen(newMigration())
	m.Policy.Prediction.OnFailure = predict.GoOn
	m = at(t, m, begun(), prepared(), measuredAs(hopeless))
	if m.State != Copying || m.Foreseen.Forecasts[0].Probability > 0.01 {
		t.Errorf("%s: %+v", m.State, m.Foreseen)
	}
}

// TestCancelledInFlight: the guest was idle when it was measured.
func TestCancelledInFlight(t *testing.T) {
	m := at(t, foreseen(newMigration()), begun(), prepared(), measuredAs(easy), passBegins(1, 0, 0, fleet.GiB))
	m = at(t, m, passBegins(2, 10*time.Second, fleet.GiB, fleet.GiB/2), passBegins(3, 15*time.Second, 3*fleet.GiB/2, fleet.GiB/2))
	if m.State != Copying || !m.lowLast() {
		t.Fatalf("after two passes: %s, %+v", m.State, m.Foreseen.Forecasts)
	}
	m = at(t, m, passBegins(4, 20*time.Second, 2*fleet.GiB, fleet.GiB/2))
	if m.State != RollingBack || !m.Foreseen.Failed || len(m.Story) == 0 || m.Story[len(m.Story)-1].State != RollingBack {
		t.Fatalf("after three: %s, %+v", m.State, m.Foreseen.Forecasts)
	}
	if got := m.Graded(); got != nil {
		t.Errorf("a prediction that was acted on is graded: %+v", got)
	}
}

func TestEvaluatedWithinAPass(t *testing.T) {
	m := at(t, foreseen(newMigration()), begun(), prepared(), measuredAs(easy), passBegins(1, 0, 0, fleet.GiB))
	count := len(m.Foreseen.Forecasts)
	var sent fleet.Bytes
	var last time.Duration
	progress := func(after time.Duration, rate fleet.BytesPerSecond) Event {
		sent += fleet.Bytes((after - last).Seconds() * float64(rate))
		last = after
		e := passBegins(1, after, sent, fleet.GiB-sent)
		e.Progress.PassBegins = false
		return e
	}
	m = at(t, m, progress(time.Second, 100<<20))
	if got := len(m.Foreseen.Forecasts); got != count {
		t.Errorf("after a second there is another forecast")
	}
	m = at(t, m, progress(8*time.Second, 1<<18), progress(15*time.Second, 1<<18))
	if m.State != Copying {
		t.Fatalf("two slow looks: %s: %s", m.State, m.Cause)
	}
	for after := 22 * time.Second; m.State == Copying && after < time.Minute; after += 7 * time.Second {
		m = at(t, m, progress(after, 1<<18))
	}
	if m.State != RollingBack || !strings.Contains(m.Cause, "the first pass alone takes") {
		t.Errorf("the link has failed: %s: %s", m.State, m.Cause)
	}
}

func TestGraded(t *testing.T) {
	m := at(t, foreseen(newMigration()), begun(), prepared(), measuredAs(easy),
		passBegins(1, 0, 0, fleet.GiB), passBegins(2, 10*time.Second, fleet.GiB, fleet.MiB))
	m.State, m.SourceMarks, m.TargetMarks = Succeeded, &SourceMarks{
		Stopped: epochZero.Add(time.Hour + 10*time.Second), Sent: fleet.GiB + fleet.MiB, Passes: 2,
	}, &TargetMarks{Resumed: epochZero.Add(time.Hour + 10*time.Second + 30*time.Millisecond)}
	list := m.Graded()
	if len(list) != 2 {
		t.Fatalf("%d forecasts are graded", len(list))
	}
	want := predict.Outcome{Ended: true, Blackout: 30 * time.Millisecond, Bytes: fleet.GiB + fleet.MiB, Passes: 2}
	want.Total = 11*time.Second + want.Blackout
	if list[0].Outcome != want {
		t.Errorf("the outcome is %+v, want %+v", list[0].Outcome, want)
	}
	m.State, m.Foreseen.Exhausted, m.SourceMarks = Aborted, true, nil
	if list := m.Graded(); len(list) != 2 || list[0].Outcome.Ended || list[0].Outcome.Total != m.Policy.CopyMax {
		t.Errorf("given up: %+v", list)
	}
	m.Foreseen.Exhausted = false
	if list := m.Graded(); list != nil {
		t.Errorf("aborted by a fault: %+v", list)
	}
}

// TestThrottle: what is allowed and the QEMU can is chosen before the copy, and what more
// may be taken in the copy counts for its forecasts.
func TestThrottle(t *testing.T) {
	m := foreseen(newMigration())
	m.Policy.ThrottleMax = 90
	busy := guestDirtying(150 * fleet.MiB)
	if m := at(t, m, begun(), prepared(), measuredAs(busy)); m.Foreseen.Throttle.Max != 0 || m.State != Preparing {
		t.Errorf("a QEMU that does not know how: %s, %+v", m.State, m.Foreseen.Throttle)
	}
	m.SourceQEMU.Capabilities = fleet.Capabilities{throttles}
	m = at(t, m, begun(), prepared(), measuredAs(busy))
	if chosen := m.Foreseen.Throttle; m.State != Copying || chosen.Initial < 30 || chosen.Max != 90 {
		t.Fatalf("%s, %+v", m.State, chosen)
	}
	m = at(t, m, passBegins(1, 0, 0, fleet.GiB))
	second := passBegins(2, 10*time.Second, fleet.GiB, fleet.GiB)
	second.Progress.Throttle = 30
	m = at(t, m, second)
	if m.lowLast() {
		t.Errorf("there are 60 %% more to take: %+v", m.Foreseen.Forecasts)
	}
	second.Progress.Throttle, second.Progress.Pass = 90, 3
	second.Progress.At, second.Progress.Elapsed = second.Progress.At.Add(10*time.Second), 21*time.Second
	second.Progress.Sent *= 2
	if m = at(t, m, second); m.Foreseen.Forecasts[len(m.Foreseen.Forecasts)-1].Probability > 0.5 {
		t.Errorf("all is taken, and it does not end: %+v", m.Foreseen.Forecasts)
	}
}

// TestClocksApart: neither the server's nor the source's clock has a say.
func TestClocksApart(t *testing.T) {
	for _, off := range []time.Duration{-2 * time.Hour, 2 * time.Hour} {
		m := at(t, foreseen(newMigration()), begun(), prepared(), measuredAs(easy), passBegins(1, 0, 0, fleet.GiB))
		second := passBegins(2, 10*time.Second, fleet.GiB, 8*fleet.MiB)
		second.At, second.Progress.At = second.At.Add(off), second.Progress.At.Add(-off)
		m = at(t, m, second)
		if n := len(m.Foreseen.Forecasts); n != 2 || m.Foreseen.Forecasts[1].Probability < 0.99 {
			t.Errorf("by %v apart: %+v", off, m.Foreseen.Forecasts)
		}
	}
}

// TestNotCancelledAtTheEnd: the source may be about to stop the guest.
func TestNotCancelledAtTheEnd(t *testing.T) {
	m := at(t, foreseen(newMigration()), begun(), prepared(), measuredAs(easy), passBegins(1, 0, 0, fleet.GiB),
		passBegins(2, 10*time.Second, fleet.GiB, fleet.GiB/2), passBegins(3, 15*time.Second, 3*fleet.GiB/2, fleet.GiB/2))
	last := passBegins(4, 20*time.Second, 2*fleet.GiB, fleet.GiB/2)
	last.Progress.Bandwidth = 2 << 30
	if m = at(t, m, last); m.State != Copying {
		t.Errorf("what is left fits into the blackout, and it is %s: %s", m.State, m.Cause)
	}
}
