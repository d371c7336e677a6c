package predict

import (
	"math"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Outcome is how a migration came out.
type Outcome struct {
	// Ended: it ended within its policy. False: it was given up as what takes too
	// long. Another end (a fault, a person's cancel) says nothing of a forecast.
	Ended    bool          `json:"ended"`
	Total    time.Duration `json:"total"` // from the copy's start to the target's first instruction, or to the giving up
	Blackout time.Duration `json:"blackout"`
	Bytes    fleet.Bytes   `json:"bytes"`
	Passes   int           `json:"passes"`
}

// Graded is a forecast with what became of it.
type Graded struct {
	Forecast Forecast `json:"forecast"`
	Outcome  Outcome  `json:"outcome"`
}

// OfEachStage leaves of a migration's forecasts the one before the copy and the first after
// a pass, where there are: a long migration is not to weigh more than a short one.
func OfEachStage(list []Graded) (kept []Graded) {
	before := slices.IndexFunc(list, func(g Graded) bool { return g.Forecast.Pass == 0 })
	under := slices.IndexFunc(list, func(g Graded) bool { return g.Forecast.Pass > 1 })
	for _, i := range []int{before, under} {
		if i >= 0 {
			kept = append(kept, list[i])
		}
	}
	return kept
}

// least is how many outcomes a correction needs: with fewer, the quantiles of an
// interval at Level are beyond what was seen.
const least = 20

// Calibration corrects forecasts by what earlier ones of the same stage were off: what is
// expected moves by the median error, and the interval is widened, or narrowed, so that it
// would have held Level of the outcomes (conformalized quantile regression, Romano et al.,
// NeurIPS 2019). The zero value corrects nothing.
type Calibration struct {
	Before Correction `json:"before,omitzero"` // of forecasts before a pass is over
	Under  Correction `json:"under,omitzero"`  // of those after
}

// Correction is that of one stage; a field is zero until enough is known.
type Correction struct {
	Total    Shift `json:"total,omitzero"`    // of logarithms: long migrations are off by more
	Blackout Shift `json:"blackout,omitzero"` // of ns: what is not in the model is there in all alike
	Bytes    Shift `json:"bytes,omitzero"`    // of logarithms
}

// Shift moves an interval, and then its ends outward.
type Shift struct {
	By    float64 `json:"by"`
	Widen float64 `json:"widen"`
}

// Calibrate learns from migrations that ended within their policy and were expected to.
func Calibrate(graded []Graded) Calibration {
	var before, under outcomes
	for _, g := range graded {
		if !g.Outcome.Ended || !g.Forecast.Known || g.Forecast.Fails() {
			continue
		}
		if g.Forecast.beforeAny() {
			before.add(g)
		} else {
			under.add(g)
		}
	}
	return Calibration{Before: before.correction(), Under: under.correction()}
}

type outcomes struct{ total, blackout, bytes []off }

func (o *outcomes) add(g Graded) {
	foretold := g.Forecast.Estimate
	if raw := g.Forecast.Raw; raw != nil {
		foretold = *raw
	}
	o.total = append(o.total, foretold.Total.off(g.Outcome.Total, logarithm))
	o.blackout = append(o.blackout, foretold.Blackout.off(g.Outcome.Blackout, plain))
	o.bytes = append(o.bytes, foretold.Bytes.off(g.Outcome.Bytes, logarithm))
}

func (o *outcomes) correction() Correction {
	return Correction{Total: shiftOf(o.total), Blackout: shiftOf(o.blackout), Bytes: shiftOf(o.bytes)}
}

// scale is where errors are counted.
type scale struct{ to, from func(float64) float64 }

var (
	plain     = scale{func(x float64) float64 { return x }, func(x float64) float64 { return x }}
	logarithm = scale{func(x float64) float64 { return math.Log(max(1, x)) }, math.Exp}
)

// off is how far an outcome was from what was expected, and from both ends of the interval,
// on a scale.
type off struct{ expected, low, high float64 }

func (s Span[T]) off(came T, on scale) off {
	y := on.to(float64(came))
	return off{y - on.to(float64(s.Expected)), y - on.to(float64(s.Low)), y - on.to(float64(s.High))}
}

// shiftOf takes the quantile a rank farther out than that of as many: that is what makes
// the interval hold the next outcome, too.
func shiftOf(list []off) Shift {
	n := float64(len(list))
	if len(list) < least {
		return Shift{}
	}
	errors, beyond := make([]float64, len(list)), make([]float64, len(list))
	for i, one := range list {
		errors[i] = one.expected
	}
	slices.Sort(errors)
	by := quantile(errors, 0.5)
	for i, one := range list {
		beyond[i] = max(by-one.low, one.high-by)
	}
	slices.Sort(beyond)
	return Shift{By: by, Widen: quantile(beyond, min(1, Level*(1+1/n)))}
}

// beforeAny: no pass was over when it was made.
func (f Forecast) beforeAny() bool { return f.Pass <= 1 }

// correct applies what was learnt of the forecast's stage.
func (c Calibration) correct(f Forecast) Forecast {
	by := c.Under
	if f.beforeAny() {
		by = c.Before
	}
	if by == (Correction{}) {
		return f
	}
	f.Raw = new(f.Estimate)
	f.Total = f.Total.shifted(by.Total, logarithm)
	f.Blackout = f.Blackout.shifted(by.Blackout, plain)
	f.Bytes = f.Bytes.shifted(by.Bytes, logarithm)
	return f
}

// shifted keeps the expected value within the interval.
func (s Span[T]) shifted(by Shift, on scale) Span[T] {
	at := func(value T, more float64) T {
		return T(max(0, min(most, on.from(on.to(float64(value))+by.By+more))))
	}
	moved := Span[T]{Low: at(s.Low, -by.Widen), Expected: at(s.Expected, 0), High: at(s.High, by.Widen)}
	moved.Low, moved.High = min(moved.Low, moved.Expected), max(moved.High, moved.Expected)
	return moved
}
