package predict_test

import (
	"math"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

// saturating is D(t) of a guest that writes random places of a set.
func saturating(rate, set float64, periods ...time.Duration) predict.Curve {
	var points []predict.Point
	for _, p := range periods {
		points = append(points, predict.Point{After: p, Dirty: fleet.Bytes(set * (1 - math.Exp(-rate*p.Seconds()/set)))})
	}
	return predict.NewCurve(points)
}

func TestCurveGoesOnAsItSaturates(t *testing.T) {
	const rate, set = 40e6, 96e6
	curve := saturating(rate, set, time.Second/8, time.Second/4, time.Second/2, time.Second, 2*time.Second)
	for _, s := range []float64{0.2, 1, 2, 4, 10, 100} {
		want := set * (1 - math.Exp(-rate*s/set))
		got := float64(curve.At(time.Duration(s * float64(time.Second))))
		if math.Abs(got-want) > 0.03*want {
			t.Errorf("D(%v s) = %.1f MB, want %.1f MB", s, got/1e6, want/1e6)
		}
	}
	if got, bounded := curve.Set(); !bounded || math.Abs(float64(got)-set) > 0.03*set {
		t.Errorf("the set is %v, %v", got, bounded)
	}
	straight := predict.NewCurve([]predict.Point{{After: 2 * time.Second, Dirty: 2e6}, {After: time.Second, Dirty: 1e6}, {After: 0, Dirty: 5}})
	if got := straight.At(10 * time.Second); got != 10e6 {
		t.Errorf("a straight line gives %v at ten seconds", got)
	}
	if _, bounded := straight.Set(); bounded {
		t.Error("a straight line has a set")
	}
}

func TestCurveOnlyGrows(t *testing.T) {
	curve := predict.NewCurve([]predict.Point{{After: time.Second, Dirty: 10e6}, {After: 2 * time.Second, Dirty: 9e6}})
	before := fleet.Bytes(0)
	for after := 50 * time.Millisecond; after < time.Hour; after *= 2 {
		now := curve.At(after)
		if now < before {
			t.Fatalf("D(%v) = %v, less than before", after, now)
		}
		before = now
	}
	if got := predict.NewCurve(nil).At(time.Second); got != 0 {
		t.Errorf("no measurement gives %v", got)
	}
}

func FuzzForecast(f *testing.F) {
	f.Add(uint64(1<<28), 0.4, int64(time.Second), uint64(1e7), 2.5e7, int64(6e9), uint64(2e8), uint64(3e7))
	f.Add(uint64(math.MaxUint64), -1.0, int64(1), uint64(math.MaxUint64), 1e-9, int64(1), uint64(0), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, memory uint64, zero float64, after int64, dirty uint64, rate float64, took int64, sent, left uint64) {
		in := predict.Inputs{
			Guest:  predict.Guest{Memory: fleet.Bytes(memory), Zero: zero, Curve: predict.NewCurve([]predict.Point{{After: time.Duration(after), Dirty: fleet.Bytes(dirty)}})},
			Link:   predict.Link{Rate: fleet.BytesPerSecond(rate)},
			Limits: usual,
			Passes: []predict.Pass{{Number: 1, Remaining: fleet.Bytes(memory)}, {Number: 2, After: time.Duration(took), Sent: fleet.Bytes(sent), Remaining: fleet.Bytes(left)}},
		}
		for n := range len(in.Passes) + 1 {
			in := in
			in.Passes = in.Passes[:n]
			forecast, err := predict.Make(in)
			if err != nil {
				continue
			}
			if p := forecast.Probability; !(p >= 0 && p <= 1) {
				t.Errorf("probability %v", p)
			}
			if s := forecast.Total; s.Low < 0 || s.Low > s.Expected || s.Expected > s.High {
				t.Errorf("total %+v", s)
			}
			if s := forecast.Blackout; s.Low < 0 || s.Low > s.Expected || s.Expected > s.High {
				t.Errorf("blackout %+v", s)
			}
			if s := forecast.Bytes; s.Low > s.Expected || s.Expected > s.High {
				t.Errorf("bytes %+v", s)
			}
		}
	})
}
