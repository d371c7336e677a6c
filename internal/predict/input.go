package predict

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Guest is what is known of the VM.
type Guest struct {
	Memory fleet.Bytes // the first pass looks at all of it
	Zero   float64     // share of its pages that are zero, and are sent as a few bytes
	Curve  Curve       // nil if it was not measured
	Disks  fleet.Bytes // local disks, which are copied before the memory
}

// Link is what is known of the way to the target.
type Link struct {
	Rate   fleet.BytesPerSecond // left for this migration; 0 if nothing is known
	Spread float64              // standard deviation of its logarithm
	// Last is the rate when the guest has stopped, which no limit of the policy holds
	// down; 0 is Rate.
	Last fleet.BytesPerSecond
}

// Limits are those of the policy, and the agent's own for the end of the copy.
type Limits struct {
	Blackout time.Duration // of what is left, at the rate of the copy
	Copy     time.Duration // from its start to the stop of the guest
}

// Pass is where the copy stood when a pass began.
type Pass struct {
	Number    int           // from 1
	After     time.Duration // since the copy's start
	Sent      fleet.Bytes
	Remaining fleet.Bytes // at the full size of a page
}

// Position is where the copy stands within a pass.
type Position struct {
	After     time.Duration // since the copy's start
	Sent      fleet.Bytes
	Remaining fleet.Bytes // of the pass, at the full size of a page
	// Rates are those of the link in the pass so far, over some seconds each, the oldest
	// first.
	Rates []fleet.BytesPerSecond
}

// RateBetween gives the rate of the link between two places of one pass. It is not telling
// if most of what was looked at in between was zero, for which hardly anything is sent.
func RateBetween(from, to Position) (rate fleet.BytesPerSecond, telling bool) {
	took := (to.After - from.After).Seconds()
	sent, looked := float64(to.Sent)-float64(from.Sent), float64(from.Remaining)-float64(to.Remaining)
	zero := max(0, looked-sent)
	took -= zero / zeroPerSecond
	if took <= 0 || sent < 0 || zero > 2*sent {
		return 0, false
	}
	return fleet.BytesPerSecond(max(1, sent/took)), true
}

// At gives the place of a pass's beginning.
func (p Pass) At() Position { return Position{After: p.After, Sent: p.Sent, Remaining: p.Remaining} }

// RateUntil gives the rate of the link in a pass, which has ended when the next began.
func (p Pass) RateUntil(next Pass) (rate fleet.BytesPerSecond, telling bool) {
	return RateBetween(p.At(), Position{After: next.After, Sent: next.Sent})
}

// Inputs is all that a forecast is made of.
type Inputs struct {
	Guest  Guest
	Link   Link
	Limits Limits
	Passes []Pass    // those that have begun, in order; none before the start
	Within *Position // the newest pass; nil if it has just begun
	// Throttle is the share of its time that is taken from the guest, beside what was
	// taken while it was measured.
	Throttle float64
	// Calibration is what was learnt of earlier forecasts; the zero value is nothing.
	Calibration Calibration
}
