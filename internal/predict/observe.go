package predict

import (
	"math"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// What a pass leaves is a measurement, too: D at the time that it took.

// weigh is how much the newest of what was observed counts beside the one before it: a
// guest changes its ways.
const weigh = 0.6

// refuted is from which factor on a guest is taken to have changed its ways so that the
// shape of what was measured before says nothing any more.
const refuted = 3

// observe gives the curve with what the passes left, the oldest first, and how much it
// is in doubt after that. Sure is false if they could not tell, since all took longer
// than what was measured.
func observe(measured Curve, left []Point) (seen Curve, doubt float64, sure bool) {
	var ratios []float64
	for _, p := range left {
		ratio, within := measured.ratio(p)
		if within || ratio != 1 {
			ratios = append(ratios, math.Log(ratio))
		}
		sure = sure || within
	}
	if newest, _ := measured.ratio(left[len(left)-1]); newest > refuted {
		return fromPasses(left), dirtyDoubt, true
	}
	scale, doubt := recent(ratios)
	points := make([]Point, 0, len(measured)+len(left))
	for _, p := range measured {
		points = append(points, Point{After: p.After, Dirty: fleet.Bytes(math.Exp(scale) * float64(p.Dirty))})
	}
	return NewCurve(append(points, beyond(measured, left)...)), doubt, sure
}

// ratio is by how much a pass left more than was measured. Of one that took longer
// than any measurement only that counts which no curve that goes on from there can be:
// less than at its end, or more than in a straight line.
func (c Curve) ratio(p Point) (ratio float64, within bool) {
	t, left := p.After.Seconds(), max(1, float64(p.Dirty))
	if len(c) == 0 {
		return math.Inf(1), false
	}
	last := c[len(c)-1]
	if p.After <= last.After {
		return left / max(1, c.at(t)), true
	}
	least := max(1, float64(last.Dirty))
	most := least * t / last.After.Seconds()
	return left / min(max(left, least), most), false
}

// beyond gives what passes left that took longer than any measurement.
func beyond(measured Curve, left []Point) []Point {
	var longest time.Duration
	if len(measured) > 0 {
		longest = measured[len(measured)-1].After
	}
	return slices.DeleteFunc(apart(left), func(p Point) bool { return p.After <= longest })
}

// apart gives of points of about the same time only the newest, which is the last.
func apart(points []Point) (kept []Point) {
	for _, p := range slices.Backward(points) {
		near := func(q Point) bool { return q.After < p.After*5/4 && p.After < q.After*5/4 }
		if !slices.ContainsFunc(kept, near) {
			kept = append(kept, p)
		}
	}
	return kept
}

// fromPasses gives the curve by passes alone: through what the two shortest of the
// newest left, and below them what saturates so; a straight line through one.
func fromPasses(left []Point) Curve {
	const newest = 3
	curve := NewCurve(apart(left[max(0, len(left)-newest):]))
	first := curve[0]
	if len(curve) == 1 {
		return curve
	}
	t, d := first.After.Seconds(), float64(first.Dirty)
	growth := (float64(curve[1].Dirty)/max(1, d) - 1) / (curve[1].After.Seconds()/t - 1) // 1 is a straight line
	x := min(max(growth, 0.01), 0.99)
	for share := 1.0 / 64; share < 1; share *= 2 {
		curve = append(curve, Point{
			After: time.Duration(share * float64(first.After)), Dirty: fleet.Bytes(d * (1 - math.Pow(x, share)) / (1 - x)),
		})
	}
	return NewCurve(curve)
}

// recent is the mean of what was seen, the newest weighing most, and its deviation.
func recent(seen []float64) (mean, doubt float64) {
	if len(seen) == 0 {
		return 0, 0
	}
	var sum, squares, weight float64
	w := 1.0
	for _, x := range slices.Backward(seen) {
		sum += w * x
		squares += w * x * x
		weight += w
		w *= 1 - weigh
	}
	mean = sum / weight
	return mean, math.Sqrt(max(0, squares/weight-mean*mean))
}
