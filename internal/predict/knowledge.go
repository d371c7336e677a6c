package predict

import (
	"math"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// knowledge is what is known at one moment: D and B with their doubts, and where the
// copy stands.
type knowledge struct {
	known      bool
	memory     float64
	curve      Curve
	runs       float64 // share of its time that the guest has
	dirtyDoubt float64
	rate, last float64
	rateDoubt  float64
	zero       float64
	disks      float64
	pass       int
	at         begin
}

func (in Inputs) knowledge() knowledge {
	k := knowledge{
		known: len(in.Guest.Curve) > 0, memory: float64(in.Guest.Memory), zero: min(max(in.Guest.Zero, 0), 1),
		curve: in.Guest.Curve, dirtyDoubt: math.Hypot(dirtyDoubt, in.Guest.Curve.spread()),
		rate: float64(in.Link.Rate), last: float64(in.Link.Last), rateDoubt: math.Hypot(linkDoubt, in.Link.Spread),
		runs: 1 - min(max(in.Throttle, 0), 1), disks: float64(in.Guest.Disks),
	}
	if !k.known {
		k.dirtyDoubt = blindDoubt
		k.curve = Curve{{After: time.Second, Dirty: fleet.Bytes(blindRate * in.Link.Rate)}}
	}
	if k.last <= 0 {
		k.last = k.rate
	}
	k.at = begin{pass: 1, elapsed: setupTime.Seconds(), remaining: k.memory, began: k.memory}
	if len(in.Passes) > 0 {
		k.learn(in.Passes)
	}
	if in.Within != nil && len(in.Passes) > 0 {
		k.within(*in.Within)
	}
	return k
}

// learn takes what the passes so far have shown in place of what was expected.
func (k *knowledge) learn(passes []Pass) {
	now := passes[len(passes)-1]
	k.pass = now.Number
	k.at = begin{
		pass: now.Number, elapsed: now.After.Seconds(), sent: float64(now.Sent), remaining: float64(now.Remaining), began: float64(now.Remaining),
	}
	if len(passes) == 1 {
		return
	}
	k.at.before = float64(passes[len(passes)-2].Remaining)
	var rates []float64
	var left []Point
	for i := 1; i < len(passes); i++ {
		from, to := passes[i-1], passes[i]
		took := to.After - from.After
		if took <= 0 || to.Number != from.Number+1 {
			continue
		}
		if rate, telling := from.RateUntil(to); telling {
			rates = append(rates, math.Log(float64(rate)))
		}
		left = append(left, Point{After: took, Dirty: to.Remaining})
	}
	k.learnRate(rates)
	if len(left) > 0 {
		curve, doubt, sure := observe(k.curve, left)
		k.curve, k.known = curve, true
		if sure {
			k.dirtyDoubt = max(doubt, dirtyDoubt/2)
		}
	}
}

// within moves on into the pass. The rates that it has had count beside the one that was
// expected, the newest most.
func (k *knowledge) within(now Position) {
	k.at.spent = max(0, now.After.Seconds()-k.at.elapsed)
	k.at.elapsed, k.at.sent, k.at.remaining = now.After.Seconds(), float64(now.Sent), float64(now.Remaining)
	var rates []float64
	if k.rate > 0 {
		rates = append(rates, math.Log(k.rate))
	}
	for _, rate := range now.Rates {
		rates = append(rates, math.Log(float64(rate)))
	}
	if len(now.Rates) > 0 {
		k.learnRate(rates)
	}
}

// learnRate takes the logarithms of the rates that the passes had.
func (k *knowledge) learnRate(rates []float64) {
	if len(rates) == 0 {
		return
	}
	faster := 1.0
	if k.rate > 0 {
		faster = max(1, k.last/k.rate)
	}
	rate, doubt := recent(rates)
	k.rate = math.Exp(rate)
	k.last = k.rate * faster
	k.rateDoubt = max(doubt, linkDoubt/2)
}

// draw gives the model at quantiles of D and B, in standard deviations.
func (k knowledge) draw(d, b float64) draw {
	scale := math.Exp(d * k.dirtyDoubt)
	slower := math.Exp(b * k.rateDoubt)
	return draw{
		dirty: func(seconds float64) float64 { return min(k.memory, scale*k.curve.at(k.runs*seconds)) },
		rate:  k.rate * slower, last: k.last * slower, zero: k.zero,
	}
}

// begin gives where a run starts.
func (k knowledge) begin(b float64) begin {
	from := k.at
	if k.pass == 0 {
		from.disks = k.disks / (k.rate * math.Exp(b*k.rateDoubt))
	}
	return from
}
