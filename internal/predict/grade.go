package predict

import (
	"math"
	"slices"
	"time"
)

// Summary says how good forecasts were.
type Summary struct {
	Count int `json:"count"` // of known forecasts with an outcome
	// Ended is how many of them ended and were expected to. The following are of
	// those, and zero if there are none: errors relative to the outcome.
	Ended       int     `json:"ended"`
	TotalMedian float64 `json:"totalMedian"`
	TotalP90    float64 `json:"totalP90"`
	BytesMedian float64 `json:"bytesMedian"`
	BytesP90    float64 `json:"bytesP90"`
	// By how much the blackout was off.
	BlackoutMedian time.Duration `json:"blackoutMedian"`
	BlackoutP90    time.Duration `json:"blackoutP90"`
	// The share of outcomes within the intervals, which claim Level.
	TotalHeld    float64 `json:"totalHeld"`
	BlackoutHeld float64 `json:"blackoutHeld"`
	BytesHeld    float64 `json:"bytesHeld"`

	Failures Confusion `json:"failures"`
}

// Confusion counts predictions of failure.
type Confusion struct {
	Hits        int `json:"hits"`        // predicted, and failed
	FalseAlarms int `json:"falseAlarms"` // predicted, and ended
	Misses      int `json:"misses"`      // not predicted, and failed
	Rejections  int `json:"rejections"`  // not predicted, and ended
}

// Precision is the share of predicted failures that came; NaN if none was predicted.
func (c Confusion) Precision() float64 {
	return float64(c.Hits) / float64(c.Hits+c.FalseAlarms)
}

// Recall is the share of failures that were predicted; NaN if there was none.
func (c Confusion) Recall() float64 {
	return float64(c.Hits) / float64(c.Hits+c.Misses)
}

// Grade sums up what became of forecasts.
func Grade(list []Graded) Summary {
	var s Summary
	var total, bytes, blackout []float64
	var totalHeld, blackoutHeld, bytesHeld int
	for _, g := range list {
		f, o := g.Forecast, g.Outcome
		if !f.Known {
			continue
		}
		s.Count++
		s.Failures.add(f.Fails(), !o.Ended)
		if !o.Ended || f.Fails() {
			continue
		}
		total = append(total, relative(float64(f.Total.Expected), float64(o.Total)))
		bytes = append(bytes, relative(float64(f.Bytes.Expected), float64(o.Bytes)))
		blackout = append(blackout, math.Abs(float64(f.Blackout.Expected-o.Blackout)))
		totalHeld += count(f.Total.Holds(o.Total))
		blackoutHeld += count(f.Blackout.Holds(o.Blackout))
		bytesHeld += count(f.Bytes.Holds(o.Bytes))
	}
	s.Ended = len(total)
	if n := float64(s.Ended); n > 0 {
		s.TotalHeld, s.BlackoutHeld, s.BytesHeld = float64(totalHeld)/n, float64(blackoutHeld)/n, float64(bytesHeld)/n
		s.TotalMedian, s.TotalP90 = middleAndP90(total)
		s.BytesMedian, s.BytesP90 = middleAndP90(bytes)
		median, p90 := middleAndP90(blackout)
		s.BlackoutMedian, s.BlackoutP90 = time.Duration(median), time.Duration(p90)
	}
	return s
}

func (c *Confusion) add(predicted, failed bool) {
	switch {
	case predicted && failed:
		c.Hits++
	case predicted:
		c.FalseAlarms++
	case failed:
		c.Misses++
	default:
		c.Rejections++
	}
}

func relative(expected, came float64) float64 { return math.Abs(expected-came) / max(1, came) }

func count(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

func middleAndP90(values []float64) (median, p90 float64) {
	slices.Sort(values)
	return quantile(values, 0.5), quantile(values, 0.9)
}
