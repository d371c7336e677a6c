package server

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/predict"
)

// fakeMeter measures what it is told, for everybody who asks.
type fakeMeter struct {
	mu     sync.Mutex
	curve  predict.Curve
	rate   fleet.BytesPerSecond
	err    error
	asked  []time.Time // what was to be measured after
	probed int
}

func (m *fakeMeter) guest(_ context.Context, _ fleet.VM, _ time.Duration, after time.Time) (predict.Curve, float64, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked = append(m.asked, after)
	return m.curve, 0.25, time.Unix(int64(len(m.asked)), 0), m.err
}

func (m *fakeMeter) link(context.Context, way) (fleet.BytesPerSecond, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.probed++
	return m.rate, m.err
}

// dirtying gives the curve of a guest that writes all over its memory.
func dirtying(inASecond fleet.Bytes) predict.Curve {
	return predict.Curve{{After: time.Second, Dirty: inASecond}}
}

// measuredFleet is a fleet of two hosts with a VM of a GiB on h1, whose hosts measure so.
func measuredFleet(t *testing.T, meter *fakeMeter) (f *testFleet, h1, h2 *fakeAgent) {
	t.Helper()
	f = newFleet(t)
	f.server.foreseer.meter = meter
	h1, h2 = f.join("h1"), f.join("h2")
	return f, h1, h2
}

func TestPredictedFailureIsCancelled(t *testing.T) {
	t.Parallel()
	meter := &fakeMeter{curve: dirtying(fleet.GiB), rate: 100 << 20}
	f, h1, h2 := measuredFleet(t, meter)
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.next(h2, "prepare_target")
	fl.answer(h2, "release_target")
	m := fl.await(migration.Aborted)
	seen := m.GetForeseen()
	if !seen.GetFailurePredicted() || len(seen.GetForecasts()) != 2 || !strings.Contains(m.GetCause(), "predicted to fail") || seen.GetLinkWhy() != "a probe had it" {
		t.Errorf("%s: %+v", m.GetCause(), seen)
	}
	if len(m.GetPasses()) != 0 || seen.GetOutcome() != nil {
		t.Errorf("something was copied, or is graded: %+v", m)
	}
	if len(meter.asked) != 2 || !meter.asked[0].IsZero() || !meter.asked[1].Equal(time.Unix(1, 0)) {
		t.Errorf("measurements were asked for after %v", meter.asked)
	}
}

func TestGuestThatCannotBeMeasuredIsMoved(t *testing.T) {
	t.Parallel()
	meter := &fakeMeter{err: &fleet.Error{Code: fleet.Unsupported, Op: "measure guest", Cause: "nobody may read its memory"}}
	f, h1, h2 := measuredFleet(t, meter)
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.finish(inPrepare)
	seen := fl.await(migration.Succeeded).GetForeseen()
	if !strings.Contains(seen.GetUnmeasured(), "nobody may read its memory") || len(seen.GetForecasts()) != 0 {
		t.Errorf("%+v", seen)
	}
}

func TestDryRun(t *testing.T) {
	t.Parallel()
	meter := &fakeMeter{curve: dirtying(4 * fleet.MiB), rate: 100 << 20}
	f, h1, _ := measuredFleet(t, meter)
	f.running(h1, "web1")
	forecast := func(policy *godwitv1.MigrationPolicy) (*godwitv1.ForecastMigrationResponse, error) {
		return f.server.migrationService().Forecast(t.Context(), &godwitv1.ForecastMigrationRequest{Vm: "web1", Policy: policy})
	}
	got, err := forecast(nil)
	if err != nil {
		t.Fatal(err)
	}
	list := got.GetForeseen().GetForecasts()
	if got.GetTarget() != "h2" || got.GetCancelled() || len(list) != 1 || list[0].GetProbability() < 0.99 || !list[0].GetKnown() ||
		got.GetForeseen().GetZeroShare() != 0.25 || len(got.GetForeseen().GetCurve()) != 1 {
		t.Errorf("%+v", got)
	}
	meter.mu.Lock()
	meter.curve = dirtying(fleet.GiB)
	meter.mu.Unlock()
	if got, err = forecast(nil); err != nil || !got.GetCancelled() || got.GetForeseen().GetForecasts()[0].GetProbability() > 0.01 {
		t.Errorf("a hopeless guest: %+v, %v", got, err)
	}
	if got, err = forecast(&godwitv1.MigrationPolicy{Force: true}); err != nil || got.GetCancelled() {
		t.Errorf("one that is forced: %+v, %v", got, err)
	}
	if _, err = forecast(&godwitv1.MigrationPolicy{OnPredictedFailure: "shrug"}); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("a policy of no sense: %v", err)
	}
	if vm := f.vm("web1"); vm.GetMigration() != "" {
		t.Errorf("it is in migration %s", vm.GetMigration())
	}
	if cpus, _ := f.reserved("h2"); cpus != 0 {
		t.Errorf("%d processors are reserved", cpus)
	}
}

// arrivedAt is a record of a migration from h1 to h2 that sent at a rate.
func arrivedAt(id fleet.MigrationID, rate fleet.BytesPerSecond) migration.Migration {
	const second = time.Second
	return migration.Migration{
		ID: id, Source: "h1", Target: "h2", State: migration.Succeeded, Ended: time.Unix(1000, 0),
		Passes: []migration.Pass{
			{Number: 1, Elapsed: second, Remaining: fleet.Bytes(2 * rate)},
			{Number: 2, Elapsed: 3 * second, Sent: fleet.Bytes(2 * rate), Remaining: fleet.MiB},
			{Number: 3, Elapsed: 3*second + time.Millisecond, Sent: fleet.Bytes(2*rate) + fleet.MiB}, // too little to tell
		},
	}
}

func TestLinksAreLearnt(t *testing.T) {
	l, now := newLessons(), time.Unix(2000, 0)
	between := way{"h1", "h2"}
	if link, _ := l.link(between, now); link.Rate != 0 {
		t.Errorf("of nothing it learnt %+v", link)
	}
	capped := arrivedAt("m-0", 200<<20)
	capped.Policy.BandwidthMax = 200 << 20
	l.learn(capped) // its own limit, not the link's
	if link, _ := l.link(between, now); link.Rate != 0 {
		t.Errorf("of a migration that was held down it learnt %+v", link)
	}
	running := arrivedAt("m-1", 50<<20)
	running.State = migration.Copying
	l.learn(running)
	for i, rate := range []fleet.BytesPerSecond{100 << 20, 100 << 20, 100 << 20, 100 << 20, 100 << 20, 10 << 20} {
		l.learn(arrivedAt(fleet.MigrationID("m-"+string(rune('a'+i))), rate)) // the first are the newest
	}
	link, why := l.link(between, now)
	if math.Abs(float64(link.Rate)/(100<<20)-1) > 1e-6 || link.Spread > 1e-6 || why != "5 migrations had it lately" {
		t.Errorf("%+v: %s", link, why)
	}
	if link, _ := l.link(way{"h2", "h1"}, now); link.Rate != 0 {
		t.Errorf("the way back is %+v", link)
	}
	if link, _ := l.link(between, now.Add(latelyFor)); link.Rate != 0 {
		t.Errorf("what is old says %+v", link)
	}
}

func TestLessonsAreBounded(t *testing.T) {
	l := newLessons()
	for i := maxLessons + 9; i >= 0; i-- { // the oldest first, whose ids sort last
		l.learn(arrivedAt(fleet.MigrationID(fmt.Sprintf("m-%05d", i)), 100<<20))
	}
	if _, kept := l.all["m-00000"]; !kept || len(l.all) != maxLessons {
		t.Errorf("%d are kept, the newest among them: %v", len(l.all), kept)
	}
}

// TestCurveOf: no host makes a forecast of numbers that are none.
func TestCurveOf(t *testing.T) {
	got := curveOf(&godwitv1.MeasureGuestResponse{PageBytes: 4096, Curve: []*godwitv1.DirtyPoint{
		{PeriodUs: 1_000_000, Pages: 256, PagesDeviation: 3, PagesSamplingError: 4},
		{PeriodUs: 2_000_000, Pages: math.NaN()}, {PeriodUs: 3_000_000, Pages: math.Inf(1)}, {PeriodUs: -1, Pages: 1}, {PeriodUs: 4_000_000, Pages: -1},
	}})
	if len(got) != 1 || got[0] != (predict.Point{After: time.Second, Dirty: fleet.MiB, Spread: 5 * 4096}) {
		t.Errorf("%+v", got)
	}
}
