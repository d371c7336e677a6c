package predict

import (
	"math"
	"time"
)

// QEMU's costs: a page on the wire has a header of 8 bytes, a zero page is 9 in all
// (migration/ram.c, save_page_header, save_zero_page).
const (
	pageBytes     = 4096.0
	pageOnWire    = pageBytes + 8
	zeroOnWire    = 9.0
	wirePerByte   = pageOnWire / pageBytes
	zeroPerByte   = zeroOnWire / pageBytes
	zeroPerSecond = 2 << 30 // bytes of zero pages looked at in a second
)

// The rules by which an agent ends a copy (internal/agent, converge.go).
const (
	switchCost  = 500 * time.Microsecond
	shrinkLeast = 0.7
)

// What a migration takes beside the passes, before anything was learnt: the
// connection's setup, and the devices' state, the commit and the target's start.
const (
	setupTime  = 100 * time.Millisecond
	switchTime = 20 * time.Millisecond
)

// maxPasses ends a run that neither ends nor runs out of time.
const maxPasses = 1000

// course is one run of the model, in seconds and bytes.
type course struct {
	ends     bool
	total    float64 // copy's start to the target's first instruction
	blackout float64
	sent     float64
	passes   int
	settles  float64 // what is left when the passes shrink no more, or the time is over
}

// draw is one choice of what is not known exactly.
type draw struct {
	dirty func(seconds float64) float64
	rate  float64 // bytes a second
	last  float64 // the same with the guest stopped
	zero  float64 // share of zero pages in the first pass
}

// takes gives how long a pass takes over what is left, and what it sends: the first
// finds the zero pages, later ones are taken to have none.
func (d draw) takes(pass int, left float64) (seconds, sent float64) {
	if pass > 1 {
		return left * wirePerByte / d.rate, left * wirePerByte
	}
	sent = left * ((1-d.zero)*wirePerByte + d.zero*zeroPerByte)
	return sent/d.rate + d.zero*left/zeroPerSecond, sent
}

// begin is where a run starts.
type begin struct {
	pass      int
	elapsed   float64 // since the copy's start
	spent     float64 // of that in the pass, which is under way
	disks     float64 // before the memory; how much of them is copied is not known, so they fail nothing
	sent      float64
	remaining float64 // in the pass
	before    float64 // what the pass before began with; 0 for none
	began     float64 // what this one began with
}

// run iterates the passes.
func (d draw) run(from begin, limits Limits) course {
	at := from
	for ; at.pass < from.pass+maxPasses; at.pass++ {
		if at.spent == 0 && at.pass >= 2 && d.stops(at, limits) {
			return d.stop(at)
		}
		took, sent := d.takes(at.pass, at.remaining)
		if at.elapsed+took > limits.Copy.Seconds() {
			return d.giveUp(at, limits)
		}
		at.before = at.began
		at.elapsed += took
		at.sent += sent
		at.remaining = d.dirty(at.spent + took)
		at.began, at.spent = at.remaining, 0
	}
	return d.giveUp(at, limits)
}

// stops: what is left takes hardly any time, or the passes leave no less and it fits.
func (d draw) stops(at begin, limits Limits) bool {
	cost := at.remaining * wirePerByte / d.rate
	if cost <= switchCost.Seconds() {
		return true
	}
	shrinks := at.before == 0 || at.remaining < shrinkLeast*at.before
	return !shrinks && cost <= limits.Blackout.Seconds()
}

func (d draw) stop(at begin) course {
	left := at.remaining * wirePerByte
	blackout := left/d.last + switchTime.Seconds()
	return course{
		ends: true, passes: at.pass, settles: at.remaining,
		total: at.disks + at.elapsed + blackout, blackout: blackout, sent: at.sent + left,
	}
}

// giveUp is the end of the time for the copy, all of which the link was used.
func (d draw) giveUp(at begin, limits Limits) course {
	left := max(0, limits.Copy.Seconds()-at.elapsed)
	return course{
		passes: at.pass, settles: d.settles(at), total: max(at.elapsed, limits.Copy.Seconds()),
		sent: at.sent + left*d.rate, blackout: d.settles(at)*wirePerByte/d.last + switchTime.Seconds(),
	}
}

// settles iterates on, without a limit of time, to what the passes come to.
func (d draw) settles(at begin) float64 {
	left := at.remaining
	for range maxPasses {
		next := d.dirty(left * wirePerByte / d.rate)
		if math.Abs(next-left) <= 1e-3*left {
			return next
		}
		left = next
	}
	return left
}
