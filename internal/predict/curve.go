package predict

import (
	"math"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Point is one measurement of how a guest changes its memory.
type Point struct {
	After time.Duration `json:"after"` // since a beginning
	Dirty fleet.Bytes   `json:"dirty"` // changed since, each page counted once; the mean of several windows
	// Spread is the standard deviation between windows; zero if there was one.
	Spread fleet.Bytes `json:"spread,omitempty"`
}

// Curve is D(t), measured at some periods, the shortest first.
type Curve []Point

// straight is from what growth on over a doubling of the time a curve is taken not
// to saturate: 2 is a straight line.
const straight = 1.95

// NewCurve puts measurements in order. Those of no time are left out; since pages that
// have changed stay so, a point is at least the one before.
func NewCurve(points []Point) Curve {
	curve := make(Curve, 0, len(points))
	for _, p := range points {
		if p.After > 0 {
			curve = append(curve, p)
		}
	}
	slices.SortFunc(curve, func(a, b Point) int { return int(a.After - b.After) })
	for i := 1; i < len(curve); i++ {
		curve[i].Dirty = max(curve[i].Dirty, curve[i-1].Dirty)
	}
	return curve
}

// At gives the bytes changed within t: straight lines between what was measured, and
// beyond that what saturates as the last part of it does.
func (c Curve) At(t time.Duration) fleet.Bytes {
	return fleet.Bytes(c.at(t.Seconds()))
}

func (c Curve) at(seconds float64) float64 {
	if len(c) == 0 || seconds <= 0 {
		return 0
	}
	beforeT, beforeD := 0.0, 0.0
	for _, p := range c {
		t, d := p.After.Seconds(), float64(p.Dirty)
		if seconds <= t {
			return beforeD + (d-beforeD)*(seconds-beforeT)/(t-beforeT)
		}
		beforeT, beforeD = t, d
	}
	return c.beyond(seconds)
}

// beyond continues the curve by D∞(1−xˢ), s = t/(T/2), through the points at the last
// period T and at half of it: D(T)/D(T/2) = 1+x.
func (c Curve) beyond(seconds float64) float64 {
	last := c[len(c)-1]
	t, d := last.After.Seconds(), float64(last.Dirty)
	half := c.at(t / 2)
	growth := 2.0
	if half > 0 {
		growth = d / half
	}
	if growth >= straight {
		return d + (d-half)/(t/2)*(seconds-t)
	}
	x := max(0, growth-1)
	return half / (1 - x) * (1 - math.Pow(x, seconds/(t/2)))
}

// Rate is how fast the guest changes memory that is clean.
func (c Curve) Rate() fleet.BytesPerSecond {
	for _, p := range c {
		if p.Dirty > 0 {
			return fleet.BytesPerSecond(float64(p.Dirty) / p.After.Seconds())
		}
	}
	return 0
}

// Set is the memory that the guest changes again and again, as far as the
// measurements show its end; bounded is false where they show none.
func (c Curve) Set() (set fleet.Bytes, bounded bool) {
	if len(c) == 0 {
		return 0, false
	}
	t := c[len(c)-1].After.Seconds()
	now, later := c.at(t), c.at(64*t)
	return fleet.Bytes(later), later < 2*now
}

// spread is the relative standard deviation that the windows show, weighted towards
// the periods in which much is changed.
func (c Curve) spread() float64 {
	var sum, weight float64
	for _, p := range c {
		sum += float64(p.Spread)
		weight += float64(p.Dirty)
	}
	if weight == 0 {
		return 0
	}
	return min(sum/weight, spreadMax)
}

// spreadMax is the most that windows are taken to differ.
const spreadMax = 3
