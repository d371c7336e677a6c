package predict

import (
	"math"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Level is the share of outcomes that an interval is to hold.
const Level = 0.9

// Number is what a forecast foretells: a time, an amount or a count.
type Number interface{ ~int | ~int64 | ~uint64 }

// Span is an expected value and the interval that holds the outcome at Level.
type Span[T Number] struct {
	Low      T `json:"low"`
	Expected T `json:"expected"`
	High     T `json:"high"`
}

// Holds reports whether a value is within the interval.
func (s Span[T]) Holds(value T) bool { return s.Low <= value && value <= s.High }

// Estimate is what a migration is expected to take.
type Estimate struct {
	// Total is from the copy's start to the target's first instruction; where the
	// migration is not expected to end, to the end of the time for the copy.
	Total    Span[time.Duration] `json:"total"`
	Blackout Span[time.Duration] `json:"blackout"`
	Bytes    Span[fleet.Bytes]   `json:"bytes"` // of memory, sent
}

// Forecast is what is expected of one migration at one moment of it.
type Forecast struct {
	Pass int `json:"pass"` // that has just begun; 0 before the start
	// Known is false if the guest was not measured: then the probability says
	// nothing, and nothing follows from it.
	Known bool `json:"known"`
	// Probability is that of ending within the policy, without help.
	Probability float64 `json:"probability"`
	Estimate
	Passes Span[int] `json:"passes"`
	// Raw is the estimate before its correction by earlier outcomes; nil if there was
	// none.
	Raw *Estimate `json:"raw,omitempty"`
	// Settles is the blackout that the passes come to, however long they may go on.
	Settles time.Duration `json:"settles"`
	Reason  string        `json:"reason"` // one sentence
}

// Fails reports whether the migration is expected not to end within its policy.
func (f Forecast) Fails() bool { return f.Known && f.Probability < 0.5 }

// quantiles are the points of a standard normal distribution at the middle of as many
// equal shares: a grid of equal weights.
var quantiles = [...]float64{-1.732, -1.150, -0.812, -0.549, -0.319, -0.105, 0.105, 0.319, 0.549, 0.812, 1.150, 1.732}

// What nothing measured tells, as standard deviations of logarithms: how far a guest
// changes its ways between the measurement and the passes, and a link its rate.
const (
	dirtyDoubt = 0.15
	linkDoubt  = 0.08
	// blindDoubt is that of a guest that was not measured, and blindRate the share
	// of the link's rate that it is taken to dirty.
	blindDoubt = 2.0
	blindRate  = 0.3
)

// Make makes a forecast. It is an Invalid error if the guest has no memory, a limit is not
// above zero, or neither the passes nor the link tell a rate.
func Make(in Inputs) (Forecast, error) {
	k := in.knowledge()
	if err := in.validate(k); err != nil {
		return Forecast{}, err
	}
	runs := make([]course, 0, len(quantiles)*len(quantiles))
	for _, d := range quantiles {
		for _, b := range quantiles {
			runs = append(runs, k.draw(d, b).run(k.begin(b), in.Limits))
		}
	}
	expected := k.draw(0, 0).run(k.begin(0), in.Limits)
	f := Forecast{Pass: k.pass, Known: k.known}
	f.Probability = share(runs, func(c course) bool { return c.ends })
	counted := runs
	if expected.ends {
		counted = slices.DeleteFunc(slices.Clone(runs), func(c course) bool { return !c.ends })
	}
	f.Total = span[time.Duration](counted, expected, func(c course) float64 { return c.total * second })
	f.Blackout = span[time.Duration](counted, expected, func(c course) float64 { return c.blackout * second })
	f.Bytes = span[fleet.Bytes](counted, expected, func(c course) float64 { return c.sent })
	f.Passes = span[int](counted, expected, func(c course) float64 { return float64(c.passes) })
	f.Settles = seconds(k.draw(0, 0).settles(k.begin(0))*wirePerByte/k.last + switchTime.Seconds())
	if f.Known && !f.Fails() {
		f = in.Calibration.correct(f)
	}
	f.Reason = in.reason(k, f)
	return f, nil
}

func (in Inputs) validate(k knowledge) error {
	invalid := func(cause string) error {
		return &fleet.Error{Code: fleet.Invalid, Op: "forecast", Cause: cause}
	}
	switch {
	case in.Guest.Memory == 0:
		return invalid("the guest has no memory")
	case !(k.rate > 0) || math.IsInf(k.rate, 0):
		return invalid("the rate of the link is not known")
	case in.Limits.Blackout <= 0 || in.Limits.Copy <= 0:
		return invalid("the blackout and the time to copy must be limited to more than zero")
	}
	return nil
}

const second = float64(time.Second)

// most is above what any limit allows, and fits into every Number.
const most = float64(math.MaxInt64 / 2)

func seconds(s float64) time.Duration { return time.Duration(min(s*second, most)) }

func share(runs []course, of func(course) bool) float64 {
	n := 0
	for _, run := range runs {
		if of(run) {
			n++
		}
	}
	return float64(n) / float64(len(runs))
}

// span is the interval that the runs show.
func span[T Number](runs []course, expected course, of func(course) float64) Span[T] {
	values := make([]float64, len(runs))
	for i, run := range runs {
		values[i] = min(of(run), most)
	}
	slices.Sort(values)
	middle := min(of(expected), most)
	low, high := quantile(values, (1-Level)/2), quantile(values, (1+Level)/2)
	return Span[T]{Low: T(min(low, middle)), Expected: T(middle), High: T(max(high, middle))}
}

// quantile of sorted values, by straight lines between them; NaN of none.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	place := q * float64(len(sorted)-1)
	i := min(int(place), len(sorted)-1)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (sorted[i+1]-sorted[i])*(place-float64(i))
}
