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

// Calibration corrects forecasts by what earlier ones of the same stage were off, as
// split conformal prediction does (Lei et al., JASA 2018): the scores of the outcomes,
// each in units of its own forecast's doubt, give the interval of the next one. The
// zero value corrects nothing.
type Calibration struct {
	Before Correction `json:"before,omitzero"` // of forecasts before a pass is over
	Under  Correction `json:"under,omitzero"`  // of those after
}

// Correction is that of one stage; a field is zero until enough is known.
type Correction struct {
	Total    Scores `json:"total,omitzero"`
	Blackout Scores `json:"blackout,omitzero"`
	Bytes    Scores `json:"bytes,omitzero"`
}

// Scores are how far outcomes were from what was expected, in units of the doubt: the
// ends of what held Level of them, and their middle.
type Scores struct {
	Low    float64 `json:"low"`
	Middle float64 `json:"middle"`
	High   float64 `json:"high"`
}

// Calibrate learns from migrations that ended within their policy and were expected to.
func Calibrate(graded []Graded) Calibration {
	var before, under scoreLists
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

type scoreLists struct{ total, blackout, bytes []float64 }

func (l *scoreLists) add(g Graded) {
	foretold := g.Forecast.Estimate
	if raw := g.Forecast.Raw; raw != nil {
		foretold = *raw
	}
	l.total = append(l.total, foretold.Total.score(g.Outcome.Total))
	l.blackout = append(l.blackout, foretold.Blackout.score(g.Outcome.Blackout))
	l.bytes = append(l.bytes, foretold.Bytes.score(g.Outcome.Bytes))
}

func (l *scoreLists) correction() Correction {
	return Correction{Total: scoresOf(l.total), Blackout: scoresOf(l.blackout), Bytes: scoresOf(l.bytes)}
}

// scoresOf takes the quantiles a rank farther out than those of as many: that is what
// makes the interval hold the next outcome, too.
func scoresOf(scores []float64) Scores {
	if len(scores) < least {
		return Scores{}
	}
	slices.Sort(scores)
	outward := 1 / float64(len(scores))
	return Scores{
		Low: quantile(scores, max(0, (1-Level)/2-outward)), Middle: quantile(scores, 0.5),
		High: quantile(scores, min(1, (1+Level)/2+outward)),
	}
}

// beforeAny: no pass was over when it was made.
func (f Forecast) beforeAny() bool { return f.Pass <= 1 }

// correct moves the expected values to the middle of what came out, and the intervals
// to what held Level of it.
func (c Calibration) correct(f Forecast) Forecast {
	by := c.Under
	if f.beforeAny() {
		by = c.Before
	}
	if by == (Correction{}) {
		return f
	}
	f.Raw = new(f.Estimate)
	f.Total = f.Total.corrected(by.Total)
	f.Blackout = f.Blackout.corrected(by.Blackout)
	f.Bytes = f.Bytes.corrected(by.Bytes)
	return f
}

// doubtFloor is the least doubt, relative to what is expected.
const doubtFloor = 0.02

// doubt is half the interval's width, as the logarithm of a ratio.
func (s Span[T]) doubt() float64 {
	if s.Low <= 0 {
		return doubtFloor
	}
	return max(doubtFloor, math.Log(float64(s.High)/float64(s.Low))/2)
}

// score is how far off the expected value was, in units of the doubt.
func (s Span[T]) score(came T) float64 {
	return math.Log(max(1, float64(came))/max(1, float64(s.Expected))) / s.doubt()
}

func (s Span[T]) corrected(by Scores) Span[T] {
	if by == (Scores{}) {
		return s
	}
	expected, doubt := max(1, float64(s.Expected)), s.doubt()
	at := func(score float64) T { return T(min(most, expected*math.Exp(doubt*score))) }
	return Span[T]{Low: at(by.Low), Expected: at(by.Middle), High: at(by.High)}
}
