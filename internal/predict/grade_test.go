package predict_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

func around(expected time.Duration) predict.Span[time.Duration] {
	return predict.Span[time.Duration]{Low: expected * 9 / 10, Expected: expected, High: expected * 11 / 10}
}

func graded(p float64, expected, came time.Duration, ended bool) predict.Graded {
	return predict.Graded{
		Forecast: predict.Forecast{Known: true, Probability: p, Estimate: predict.Estimate{
			Total: around(expected), Blackout: around(expected / 100), Bytes: predict.Span[fleet.Bytes]{Low: 90, Expected: 100, High: 110},
		}},
		Outcome: predict.Outcome{Ended: ended, Total: came, Blackout: came / 100, Bytes: 105},
	}
}

func TestGrade(t *testing.T) {
	unknown := graded(0.9, time.Hour, time.Second, true)
	unknown.Forecast.Known = false
	s := predict.Grade([]predict.Graded{
		graded(0.9, 11*time.Second, 10*time.Second, true), // off by 10 %, and within
		graded(1, 10*time.Second, 10*time.Second, true),
		graded(0.8, 15*time.Second, 10*time.Second, true), // off by 50 %
		graded(0.1, time.Minute, 10*time.Second, true),    // a false alarm
		graded(0.1, time.Minute, time.Minute, false),      // a hit
		graded(0.2, time.Minute, time.Minute, false),      // a hit
		graded(0.7, time.Minute, time.Minute, false),      // a miss
		unknown,
	})
	if s.Count != 7 || s.Ended != 3 {
		t.Errorf("counted %d, of which %d ended", s.Count, s.Ended)
	}
	near := func(what string, got, want float64) {
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("%s is %v, want %v", what, got, want)
		}
	}
	near("the median error", s.TotalMedian, 0.1)
	near("the 90th percentile", s.TotalP90, 0.42)
	near("the share held", s.TotalHeld, 2.0/3)
	near("the bytes' share held", s.BytesHeld, 1)
	near("the blackout's 90th percentile", s.BlackoutP90.Seconds(), 0.042)
	near("precision", s.Failures.Precision(), 2.0/3)
	near("recall", s.Failures.Recall(), 2.0/3)
	if got := predict.Grade(nil); got != (predict.Summary{}) {
		t.Errorf("of nothing: %+v", got)
	}
}

// TestCalibrationHoldsWhatItClaims: outcomes are half again as long as foretold, and
// spread twice as far; after calibration on some, the others are held as claimed.
func TestCalibrationHoldsWhatItClaims(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 7))
	g := &guest{memory: fleet.GiB, used: fleet.GiB, load: steady(random, 5e6, 64*fleet.MiB)}
	measured := g.measure()
	made := func(c predict.Calibration) (list []predict.Graded) {
		for range 500 {
			rate := fleet.BytesPerSecond(20e6 + 80e6*random.Float64())
			f := mustMake(t, predict.Inputs{Guest: measured, Link: predict.Link{Rate: rate}, Limits: predict.Limits{Blackout: time.Second, Copy: time.Hour}, Calibration: c})
			truth := mustMake(t, predict.Inputs{Guest: measured, Link: predict.Link{Rate: rate}, Limits: predict.Limits{Blackout: time.Second, Copy: time.Hour}})
			came := 1.5 * float64(truth.Total.Expected) * math.Exp(0.2*random.NormFloat64())
			list = append(list, predict.Graded{Forecast: f, Outcome: predict.Outcome{Ended: true, Total: time.Duration(came), Blackout: truth.Blackout.Expected, Bytes: truth.Bytes.Expected}})
		}
		return list
	}
	before := made(predict.Calibration{})
	after := predict.Grade(made(predict.Calibrate(before)))
	if raw := predict.Grade(before); raw.TotalHeld > 0.3 {
		t.Fatalf("without calibration %.2f are held: the test shows nothing", raw.TotalHeld)
	}
	if math.Abs(after.TotalHeld-predict.Level) > 0.04 { // three standard deviations of 500
		t.Errorf("the intervals hold %.3f, and claim %.2f", after.TotalHeld, predict.Level)
	}
	if after.TotalMedian > 0.16 { // that of a deviation of 0.2 is 0.135
		t.Errorf("the median error is %.3f", after.TotalMedian)
	}
	if few := predict.Calibrate(before[:10]); mustMake(t, predict.Inputs{Guest: measured, Link: predict.Link{Rate: 5e7}, Limits: usual, Calibration: few}) !=
		mustMake(t, predict.Inputs{Guest: measured, Link: predict.Link{Rate: 5e7}, Limits: usual}) {
		t.Error("ten outcomes corrected a forecast")
	}
}

func TestThreshold(t *testing.T) {
	low, high := predict.Forecast{Known: true, Probability: 0.02, Reason: "because"}, predict.Forecast{Known: true, Probability: 0.5}
	blind := predict.Forecast{Probability: 0.02}
	threshold := predict.DefaultThreshold()
	for _, test := range []struct {
		name string
		list []predict.Forecast
		met  bool
	}{
		{"none", nil, false},
		{"one low", []predict.Forecast{low}, false},
		{"two low", []predict.Forecast{high, low, low}, true},
		{"low with another between", []predict.Forecast{low, high, low}, false},
		{"low, then better", []predict.Forecast{low, low, high}, false},
		{"of nothing measured", []predict.Forecast{blind, blind, blind}, false},
	} {
		if threshold.Met(test.list) != test.met {
			t.Errorf("%s: met is %v", test.name, !test.met)
		}
	}
	if got := threshold.Cause(low); !strings.Contains(got, "2 %") || !strings.HasSuffix(got, "because") {
		t.Errorf("the cause is %q", got)
	}
}

// TestCalibrationOfWhatIsNotInTheModel: every blackout is 100 ms longer than foretold. It is
// so for one that is foretold as 20 ms, as exactly as can be, and for one of 300 in doubt.
func TestCalibrationOfWhatIsNotInTheModel(t *testing.T) {
	span := func(low, expected, high time.Duration) predict.Span[time.Duration] {
		return predict.Span[time.Duration]{Low: low * time.Millisecond, Expected: expected * time.Millisecond, High: high * time.Millisecond}
	}
	var list []predict.Graded
	for i := range 40 {
		g := graded(1, 10*time.Second, 10*time.Second, true)
		g.Forecast.Blackout, g.Outcome.Blackout = span(20, 20, 20), time.Duration(120+i%5-2)*time.Millisecond
		if i%2 == 0 {
			g.Forecast.Blackout, g.Outcome.Blackout = span(200, 300, 400), time.Duration(400+10*(i%5-2))*time.Millisecond
		}
		list = append(list, g)
	}
	g := &guest{memory: fleet.GiB, used: fleet.GiB, load: func(time.Duration, func(int)) {}}
	in := predict.Inputs{Guest: g.measure(), Link: predict.Link{Rate: 1e8}, Limits: usual}
	before := mustMake(t, in)
	in.Calibration = predict.Calibrate(list)
	after := mustMake(t, in)
	if moved := after.Blackout.Expected - before.Blackout.Expected; moved < 98*time.Millisecond || moved > 102*time.Millisecond || after.Blackout.High > 200*time.Millisecond {
		t.Errorf("%+v became %+v", before.Blackout, after.Blackout)
	}
	if after.Raw == nil || after.Raw.Blackout != before.Blackout {
		t.Errorf("what it was before is %+v", after.Raw)
	}
}
