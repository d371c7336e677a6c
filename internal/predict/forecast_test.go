package predict_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

var usual = predict.Limits{Blackout: 300 * time.Millisecond, Copy: time.Minute}

func mustMake(t *testing.T, in predict.Inputs) predict.Forecast {
	t.Helper()
	f, err := predict.Make(in)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// cases are guests of 256 MiB over a link of 25 MB/s, from easy to hopeless.
func cases(seed uint64) map[string]workload {
	const link, MiB = 25e6, float64(fleet.MiB)
	list := map[string]workload{"idle": func(time.Duration, func(int)) {}}
	for i, factor := range []float64{0.1, 0.3, 0.6, 0.8, 1.2, 1.5, 3} {
		for _, set := range []float64{8, 32, 96} {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			size := fleet.Bytes(set * MiB)
			list[fmt.Sprintf("steady %v x %v", factor, size)] = steady(random, factor*link, size)
			list[fmt.Sprintf("sweep %v x %v", factor, size)] = sweep(factor*link, size)
			list[fmt.Sprintf("zipf %v x %v", factor, size)] = zipf(random, factor*link, size)
		}
	}
	return list
}

// gradeAll runs all cases. Of each the forecast is kept before the start, or, if that
// is wanted, the one after the first pass that was copied.
func gradeAll(t *testing.T, seed uint64, late bool, calibration predict.Calibration) []predict.Graded {
	const link = 25e6
	var list []predict.Graded
	for name, load := range cases(seed) {
		g := &guest{memory: 256 * fleet.MiB, used: 160 * fleet.MiB, load: load}
		in := predict.Inputs{Guest: g.measure(), Link: predict.Link{Rate: link}, Limits: usual, Calibration: calibration}
		outcome, passes := g.migrate(link, usual)
		if late {
			in.Passes = passes[:2]
		}
		f := mustMake(t, in)
		list = append(list, predict.Graded{Forecast: f, Outcome: outcome})
		t.Logf("%-22s p=%.2f total %8v came %8v blackout %6v came %6v ended %5v: %s", name, f.Probability,
			f.Total.Expected.Round(time.Millisecond), outcome.Total.Round(time.Millisecond),
			f.Blackout.Expected.Round(time.Millisecond), outcome.Blackout.Round(time.Millisecond), outcome.Ended, f.Reason)
	}
	return list
}

func TestForecastsOfSimulatedGuests(t *testing.T) {
	for _, stage := range []struct {
		name        string
		late        bool
		median, p90 float64
	}{{"before the start", false, 0.08, 0.20}, {"one pass over", true, 0.05, 0.10}} {
		t.Run(stage.name, func(t *testing.T) {
			s := predict.Grade(gradeAll(t, 1, stage.late, predict.Calibration{}))
			t.Logf("%+v", s)
			if s.TotalMedian > stage.median || s.TotalP90 > stage.p90 {
				t.Errorf("the total time is off by %.3f, %.3f at the 90th percentile; want at most %.2f, %.2f", s.TotalMedian, s.TotalP90, stage.median, stage.p90)
			}
			if s.BlackoutP90 > 50*time.Millisecond {
				t.Errorf("the blackout is off by %v at the 90th percentile", s.BlackoutP90)
			}
			if p, r := s.Failures.Precision(), s.Failures.Recall(); !(p >= 0.95) || !(r >= 0.95) {
				t.Errorf("failures are predicted with precision %.2f and recall %.2f: %+v", p, r, s.Failures)
			}
		})
	}
}

func TestReason(t *testing.T) {
	g := &guest{memory: 256 * fleet.MiB, used: 256 * fleet.MiB, load: steady(rand.New(rand.NewPCG(1, 1)), 75e6, 96*fleet.MiB)}
	f := mustMake(t, predict.Inputs{Guest: g.measure(), Link: predict.Link{Rate: 25e6}, Limits: usual})
	for _, part := range []string{"dirties 7", "MiB/s over a ", "MiB set", "the link leaves 23.8MiB/s", "pre-copy settles at ", "limit 300ms"} {
		if !strings.Contains(f.Reason, part) {
			t.Errorf("%q does not say %q", f.Reason, part)
		}
	}
	if !f.Fails() || f.Probability > 0.01 {
		t.Errorf("a hopeless guest has a probability of %v", f.Probability)
	}
}

// TestChangedWays: a guest that was idle when it was measured and is not any more.
func TestChangedWays(t *testing.T) {
	const link = 25e6
	hard := steady(rand.New(rand.NewPCG(1, 1)), 3*link, 96*fleet.MiB)
	g := &guest{memory: 256 * fleet.MiB, used: 160 * fleet.MiB}
	g.load = then(func(time.Duration, func(int)) {}, 12*time.Second, hard)
	in := predict.Inputs{Guest: g.measure(), Link: predict.Link{Rate: link}, Limits: usual}
	if f := mustMake(t, in); f.Probability < 0.99 {
		t.Fatalf("idle: %+v", f)
	}
	_, passes := g.migrate(link, usual)
	in.Passes = passes[:4]
	if f := mustMake(t, in); f.Probability > 0.1 {
		t.Errorf("after three passes that show the change: %+v", f)
	}
}

func TestBadInputs(t *testing.T) {
	good := predict.Inputs{Guest: predict.Guest{Memory: fleet.GiB}, Link: predict.Link{Rate: 1e8}, Limits: usual}
	for name, spoil := range map[string]func(*predict.Inputs){
		"no memory":   func(in *predict.Inputs) { in.Guest.Memory = 0 },
		"no rate":     func(in *predict.Inputs) { in.Link.Rate = 0 },
		"no number":   func(in *predict.Inputs) { in.Link.Rate = fleet.BytesPerSecond(math.NaN()) },
		"no end":      func(in *predict.Inputs) { in.Link.Rate = fleet.BytesPerSecond(math.Inf(1)) },
		"no blackout": func(in *predict.Inputs) { in.Limits.Blackout = 0 },
		"no time":     func(in *predict.Inputs) { in.Limits.Copy = -time.Second },
	} {
		in := good
		spoil(&in)
		if _, err := predict.Make(in); fleet.CodeOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := mustMake(t, good)
	if f.Known || f.Fails() || predict.DefaultThreshold().Low(f) {
		t.Errorf("of a guest that was not measured something is concluded: %+v", f)
	}
}

// TestLinkFails: its rate falls to a tenth within the first pass, of which no event
// tells before its end.
func TestLinkFails(t *testing.T) {
	g := &guest{memory: fleet.GiB, used: fleet.GiB, load: steady(rand.New(rand.NewPCG(1, 1)), 5e6, 32*fleet.MiB)}
	in := predict.Inputs{
		Guest: g.measure(), Link: predict.Link{Rate: 25e6}, Limits: predict.Limits{Blackout: 300 * time.Millisecond, Copy: 2 * time.Minute},
		Passes: []predict.Pass{{Number: 1, After: 100 * time.Millisecond, Remaining: fleet.GiB}},
	}
	in.Within = &predict.Position{After: 8 * time.Second, Sent: 200e6, Remaining: fleet.GiB - 200e6, Rates: []fleet.BytesPerSecond{25e6, 25e6}}
	if f := mustMake(t, in); f.Probability < 0.9 || math.Abs(f.Total.Expected.Seconds()-47) > 3 {
		t.Errorf("all goes well: %+v", f)
	}
	in.Within = &predict.Position{After: 12 * time.Second, Sent: 210e6, Remaining: fleet.GiB - 210e6, Rates: []fleet.BytesPerSecond{25e6, 25e6, 2.5e6}}
	if f := mustMake(t, in); f.Probability < 0.1 {
		t.Errorf("a hiccup of the link: %+v", f)
	}
	in.Within = &predict.Position{
		After: 20 * time.Second, Sent: 230e6, Remaining: fleet.GiB - 230e6, Rates: []fleet.BytesPerSecond{25e6, 25e6, 2.5e6, 2.5e6, 2.5e6, 2.5e6},
	}
	if f := mustMake(t, in); f.Probability > 0.05 || !strings.Contains(f.Reason, "the first pass alone takes") {
		t.Errorf("the link has failed: %+v", f)
	}
}

func TestRateBetween(t *testing.T) {
	at := func(seconds float64, sent, left fleet.Bytes) predict.Position {
		return predict.Position{After: time.Duration(seconds * float64(time.Second)), Sent: sent, Remaining: left}
	}
	if rate, ok := predict.RateBetween(at(1, 0, fleet.GiB), at(3, 100<<20, fleet.GiB-100<<20)); !ok || rate != 50<<20 {
		t.Errorf("of 100 MiB in 2 s: %v, %v", rate, ok)
	}
	if rate, ok := predict.RateBetween(at(1, 0, 2*fleet.GiB), at(3, 1<<20, fleet.GiB)); ok {
		t.Errorf("a GiB of zeros tells %v", rate)
	}
	if rate, ok := predict.RateBetween(at(1, 0, fleet.GiB), at(2, 0, fleet.GiB)); !ok || rate != 1 {
		t.Errorf("a link that is gone: %v, %v", rate, ok)
	}
	if rate, ok := predict.RateBetween(at(2, 0, fleet.GiB), at(2, 5, 0)); ok {
		t.Errorf("no time tells %v", rate)
	}
}

// TestHelp: a guest that needs some throttle ends as it is then foretold.
func TestHelp(t *testing.T) {
	const link = 25e6
	load := func() workload { return steady(rand.New(rand.NewPCG(3, 3)), 1.5*link, 96*fleet.MiB) }
	g := &guest{memory: 256 * fleet.MiB, used: 160 * fleet.MiB, load: load()}
	in := predict.Inputs{Guest: g.measure(), Link: predict.Link{Rate: link}, Limits: usual}
	throttle, f, err := predict.Help(in, 90)
	if err != nil || throttle.Initial < 40 || throttle.Initial > 70 || throttle.Max != 90 || f.Probability < 0.9 {
		t.Fatalf("%+v, %+v, %v", throttle, f, err)
	}
	if !strings.Contains(throttle.Why, fmt.Sprintf("with %d %% of its time taken", throttle.Initial)) {
		t.Errorf("why: %s", throttle.Why)
	}
	slowed := &guest{memory: g.memory, used: g.used, load: steady(rand.New(rand.NewPCG(3, 3)), 1.5*link*float64(100-throttle.Initial)/100, 96*fleet.MiB)}
	if outcome, _ := slowed.migrate(link, usual); !outcome.Ended || !f.Total.Holds(outcome.Total) {
		t.Errorf("it came out as %+v, foretold was %+v", outcome, f)
	}
	if throttle, f, _ := predict.Help(in, 20); throttle.Initial != 20 || f.Probability > 0.5 {
		t.Errorf("with 20 %% at most: %+v, %+v", throttle, f)
	}
	if throttle, _, _ := predict.Help(in, 0); throttle != (predict.Throttle{}) {
		t.Errorf("none is allowed: %+v", throttle)
	}
	in.Guest = predict.Guest{Memory: fleet.GiB, Curve: predict.Curve{{After: time.Second, Dirty: 1e6}}}
	if throttle, _, _ := predict.Help(in, 90); throttle != (predict.Throttle{}) {
		t.Errorf("none is needed: %+v", throttle)
	}
}
