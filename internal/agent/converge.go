package agent

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

const (
	// switchCost is the time for the last pages that is good enough: it is
	// small beside QEMU's own part of the blackout.
	switchCost = 500 * time.Microsecond
	// tellingPass is how long a pass must last to tell the rate of the link.
	tellingPass = time.Second
	// shrinkLeast is by how much a pass must leave less than the one before to
	// be worth another.
	shrinkLeast = 0.7
	// lookEvery is the interval between looks at the only pass of a QEMU that
	// can't be trusted with more, and onePassLeft what is left of it when the
	// guest is stopped. If QEMU comes to its end before, it stops the guest by
	// itself, with the gate still open.
	lookEvery   = 5 * time.Millisecond
	onePassLeft = 50 * time.Millisecond
	emptyLeft   = 20 * time.Millisecond // that rest may not be empty, and takes longer then
)

// passBegun decides whether the pass that begins is to be the last.
func (h *handover) passBegun(ctx context.Context, pass int) error {
	h.pass = pass
	if h.can.OnePass && pass > 1 && h.marks.Stopped == nil {
		return &fleet.Error{
			Code: fleet.Unsupported, Op: "copy", Subject: "vm " + string(h.key.vm),
			Cause: "the first pass ended while the guest ran, and this QEMU's emulator does not notice all that it writes after that",
			Hint:  "use QEMU 8.2 or later on the source",
		}
	}
	if h.stopper != "" {
		return nil
	}
	if err := h.judge(ctx); err != nil {
		return err
	}
	if h.why == nil {
		h.left = h.progress.Remaining
		return nil
	}
	return h.stopGuest(ctx)
}

// judge looks whether the guest is to be stopped. If what is left is not much more than
// what is still under way, it is so only when the target has taken that; but a QEMU that
// is not held would stop the guest by itself meanwhile.
func (h *handover) judge(ctx context.Context) error {
	h.why = nil
	if err := h.look(ctx, true); err != nil {
		return err
	}
	if h.notePass(time.Now()); h.pass < 2 {
		return nil
	}
	if h.why = h.converged(); h.why == nil || h.cost() > underWay || !h.can.CanHold {
		return nil
	}
	h.awaitTarget(ctx)
	if err := h.look(ctx, false); err != nil {
		return err
	}
	h.why = h.converged()
	return nil
}

// converged: what is left takes hardly any time, or another pass would not
// leave less and this one fits into the blackout that is allowed. Nil if not.
func (h *handover) converged() *godwitv1.StopReason {
	if h.progress.Bandwidth <= 0 {
		return nil
	}
	cost := h.cost()
	if cost <= switchCost {
		return h.stopReason(migration.LittleLeft, h.progress.Bandwidth, switchCost)
	}
	shrinks := h.left == 0 || float64(h.progress.Remaining) < shrinkLeast*float64(h.left)
	rate := h.progress.Bandwidth
	if h.passRate > 0 {
		rate = min(rate, h.passRate)
	}
	if shrinks || timeFor(h.progress.Remaining, rate) > h.blackoutMax {
		return nil
	}
	return h.stopReason(migration.NoGain, rate, h.blackoutMax)
}

// cost is how long what is left takes, at a bandwidth that is known.
func (h *handover) cost() time.Duration { return timeFor(h.progress.Remaining, h.progress.Bandwidth) }

func timeFor(left fleet.Bytes, rate fleet.BytesPerSecond) time.Duration {
	return time.Duration(float64(left) / float64(rate) * float64(time.Second))
}

// notePass takes the rate of the pass that has ended, if it was long enough to tell. What
// QEMU has measured over its last tenth of a second is also what the sockets took, which on
// a slow link is far more than went through it.
func (h *handover) notePass(now time.Time) {
	h.passRate = 0
	if took := now.Sub(h.passBegan); !h.passBegan.IsZero() && took >= tellingPass {
		h.passRate = fleet.BytesPerSecond(float64(h.progress.Transferred-min(h.passSent, h.progress.Transferred)) / took.Seconds())
	}
	h.passBegan, h.passSent = now, h.progress.Transferred
}

// watchOnlyPass stops the guest shortly before the end of the first pass, on a
// QEMU that would lose track of what the guest writes after it.
func (h *handover) watchOnlyPass(ctx context.Context) (err error) {
	if h.stopper != "" {
		return nil
	}
	if h.progress, err = h.instance.Progress(ctx); err != nil {
		return err
	}
	before, since := h.looked, time.Since(h.lookedAt)
	h.looked, h.lookedAt = h.progress.Remaining, time.Now()
	if h.progress.Pass > 1 { // QEMU has stopped the guest itself
		return nil
	}
	if h.why = h.soonThrough(before, since); h.why == nil {
		return nil
	}
	return h.stopGuest(ctx)
}

// soonThrough says why the pass is about to end, or nil if it is not: it is within
// onePassLeft by the bandwidth or, since of empty pages hardly anything is sent,
// within emptyLeft by what has become of the rest since the look before.
func (h *handover) soonThrough(before fleet.Bytes, since time.Duration) *godwitv1.StopReason {
	left, rate, limit := float64(h.progress.Remaining), h.progress.Bandwidth, onePassLeft
	if rate <= 0 {
		return nil
	}
	pace := fleet.BytesPerSecond((float64(before) - left) / since.Seconds())
	if float64(pace)*emptyLeft.Seconds() > float64(rate)*limit.Seconds() {
		rate, limit = pace, emptyLeft
	}
	if left > float64(rate)*limit.Seconds() {
		return nil
	}
	return h.stopReason(migration.OnlyPass, rate, limit)
}

func (h *handover) stopReason(rule migration.StopRule, rate fleet.BytesPerSecond, limit time.Duration) *godwitv1.StopReason {
	return &godwitv1.StopReason{
		RemainingBytes: uint64(h.progress.Remaining), BandwidthBytesPerSecond: float64(rate),
		Rule: string(rule), LimitMs: float64(limit) / float64(time.Millisecond),
	}
}

// reportPass reports, during a pass, how far the copy is.
func (h *handover) reportPass(ctx context.Context) error {
	if h.stopper != "" {
		return nil
	}
	if err := h.watchMirrors(ctx); err != nil {
		return err
	}
	return h.look(ctx, false)
}

// look asks QEMU how far it is, and reports it.
func (h *handover) look(ctx context.Context, passBegins bool) (err error) {
	if h.progress, err = h.instance.Progress(ctx); err != nil {
		return err
	}
	p, pass := h.progress, h.pass
	if !passBegins {
		pass = max(pass, p.Pass) // its event may not have been read yet
	}
	h.sayProgress(&godwitv1.CopyProgress{
		Pass: int32(pass), SentBytes: uint64(p.Transferred), RemainingBytes: uint64(p.Remaining), TotalBytes: uint64(p.Total),
		DirtyBytesPerSecond: float64(p.DirtyRate), BandwidthBytesPerSecond: float64(p.Bandwidth), PassBegins: passBegins,
		ThrottlePercent: int32(p.Throttle), ElapsedUs: time.Since(h.began).Microseconds(),
	})
	return nil
}

// sayProgress reports how far the memory is, and the disks.
func (h *handover) sayProgress(said *godwitv1.CopyProgress) {
	if h.disks != nil {
		said.DiskCopiedBytes, said.DiskTotalBytes = uint64(h.disks.copied), uint64(h.disks.total)
		said.DiskBytesPerSecond = float64(h.disks.rate)
	}
	h.agent.say(&godwitv1.Report{
		Subject: h.command.GetSubject(), Epoch: uint64(h.key.epoch), Event: &godwitv1.Report_CopyProgress{CopyProgress: said},
	})
}
