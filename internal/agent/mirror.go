package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

const (
	// stalledAfter is how long a write to the target may take before the link, or the
	// target, counts as dead: a guest may wait for it.
	stalledAfter = 5 * time.Second
	// slowestChunk is what a mirror writes at once, at most: with less bandwidth than
	// that it takes its time.
	slowestChunk = 16 * fleet.MiB
	// finishWithin bounds the end of the copy, in the blackout.
	finishWithin = 2 * time.Second
	// memoryShare is what is left to the memory of a bandwidth that the guest's
	// writes to mirrored disks would take all of.
	memoryShare = 0.25
)

// mirrors is the copy of local disks in a hand-over.
type mirrors struct {
	to       qemu.Mirroring
	copied   fleet.Bytes // of all disks, at the last look
	total    fleet.Bytes
	rate     fleet.BytesPerSecond
	lookedAt time.Time
	movedAt  time.Time  // the last look that saw anything written
	finished chan error // whether the target has all; nil before the guest has stopped
	limit    fleet.BytesPerSecond
}

// newMirrors gives those of an instance; nil if it has no local disks.
func newMirrors(instance *qemu.Instance, out qemu.Outgoing, port uint32) *mirrors {
	if !hasLocal(instance) {
		return nil
	}
	return &mirrors{limit: out.BandwidthMax, to: qemu.Mirroring{
		Address: netip.AddrPortFrom(out.Address.Addr(), uint16(port)), CredsDir: out.CredsDir, TLSHostname: out.TLSHostname,
		BandwidthMax: out.BandwidthMax,
	}}
}

// copyDisks copies the local disks, or goes on with what an earlier agent has begun,
// until the target has all of them and the guest's writes go to both.
func (h *handover) copyDisks(ctx context.Context) error {
	if h.disks == nil {
		return nil
	}
	known, err := h.instance.Mirrors(ctx)
	if err != nil {
		return err
	}
	if !h.goesOn(known) {
		if err := h.beginMirrors(ctx); err != nil {
			return err
		}
	}
	looks := time.NewTicker(progressEvery)
	defer looks.Stop()
	for asked := false; ; {
		now, err := h.lookAtMirrors(ctx)
		if err != nil {
			return err
		}
		switch ready := all(now, func(one qemu.Mirror) bool { return one.Ready }); {
		case ready && asked && all(now, func(one qemu.Mirror) bool { return one.Synced }):
			return nil
		case ready && !asked:
			if err := h.instance.SyncMirrors(ctx); err != nil {
				return err
			}
			asked = true
		}
		h.sayProgress(&godwitv1.CopyProgress{})
		select {
		case <-looks.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// goesOn tells whether an earlier agent has begun all mirrors, and none has ended.
func (h *handover) goesOn(known []qemu.Mirror) bool {
	local := 0
	for _, disk := range h.instance.Config().Disks {
		if disk.Local {
			local++
		}
	}
	return len(known) == local && all(known, func(one qemu.Mirror) bool { return !one.Ended })
}

func (h *handover) beginMirrors(ctx context.Context) error {
	if h.disks.to.Address.Port() == 0 {
		return &fleet.Error{
			Code: fleet.Unsupported, Op: "copy disks", Subject: "vm " + string(h.key.vm), Cause: "the target does not take local disks",
			Hint: "upgrade the servers, and the agent of the target's host",
		}
	}
	if err := h.instance.AbandonMirrors(ctx); err != nil {
		return err
	}
	return h.instance.StartMirrors(ctx, h.disks.to)
}

// all tells whether all mirrors are so; false if there are none.
func all(mirrors []qemu.Mirror, are func(qemu.Mirror) bool) bool {
	for _, one := range mirrors {
		if !are(one) {
			return false
		}
	}
	return len(mirrors) > 0
}

// lookAtMirrors sees how far they are. One that has failed, or does not get on, fails
// the migration; the guest runs on.
func (h *handover) lookAtMirrors(ctx context.Context) ([]qemu.Mirror, error) {
	now, err := h.instance.Mirrors(ctx)
	if err != nil {
		return nil, err
	}
	var copied, total fleet.Bytes
	for _, one := range now {
		if one.Ended {
			return nil, mirrorError(h.key.vm, one)
		}
		copied, total = copied+one.Copied, total+one.Total
	}
	d, at := h.disks, time.Now()
	if d.lookedAt.IsZero() {
		d.movedAt = at
	} else if since := at.Sub(d.lookedAt).Seconds(); since > 0 {
		d.rate = fleet.BytesPerSecond(float64(copied-min(d.copied, copied)) / since)
	}
	if copied != d.copied || copied == total {
		d.movedAt = at
	}
	d.copied, d.total, d.lookedAt = copied, total, at
	if at.Sub(d.movedAt) > d.patience(len(now)) {
		h.instance.CutMirrors(ctx)
		return nil, &fleet.Error{
			Code: fleet.Unavailable, Op: "copy disks", Subject: "vm " + string(h.key.vm),
			Cause: fmt.Sprintf("the target takes nothing for %v", at.Sub(d.movedAt).Round(time.Second)),
			Hint:  "see whether the target's host runs, and the link to it",
		}
	}
	return now, nil
}

// patience is how long nothing may be written of so many disks, which share the
// bandwidth, while something is to be.
func (d *mirrors) patience(disks int) time.Duration {
	if d.limit <= 0 {
		return stalledAfter
	}
	return stalledAfter + time.Duration(float64(disks)*float64(slowestChunk)/float64(d.limit)*float64(time.Second))
}

func mirrorError(vm fleet.VMName, one qemu.Mirror) error {
	cause := one.Error
	if cause == "" {
		cause = "it has ended before the guest stopped"
	}
	return &fleet.Error{
		Code: fleet.Failed, Op: "copy disk " + one.Disk, Subject: "vm " + string(vm), Cause: cause,
		Hint: "see whether the target's host has room, and the link to it",
	}
}

// watchMirrors, while the memory is copied, does so, and gives the memory what the
// guest's writes leave of the bandwidth.
func (h *handover) watchMirrors(ctx context.Context) error {
	if h.disks == nil || h.stopper != "" {
		return nil
	}
	if _, err := h.lookAtMirrors(ctx); err != nil {
		return err
	}
	if h.disks.limit <= 0 {
		return nil
	}
	left := max(h.disks.limit-h.disks.rate, fleet.BytesPerSecond(memoryShare*float64(h.disks.limit)))
	return h.instance.SetBandwidth(ctx, left)
}

// finishMirrors begins to finish the copy of the disks of a guest that has stopped, unless
// that was begun together with the stop.
func (h *handover) finishMirrors(ctx context.Context) {
	if h.disks != nil && h.disks.finished == nil {
		h.waitFinished(ctx, h.instance.FinishMirrors)
	}
}

// waitFinished waits, by itself, until the target has all, or it is known that it has not.
func (h *handover) waitFinished(ctx context.Context, finished func(context.Context) error) {
	h.disks.finished = make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(ctx, finishWithin)
		defer cancel()
		h.disks.finished <- finished(ctx)
	}()
}

// awaitMirrors waits until the target has all of the disks.
func (h *handover) awaitMirrors(ctx context.Context) error {
	if h.disks == nil {
		return nil
	}
	select {
	case err := <-h.disks.finished:
		h.disks.finished <- err
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stopMirrored stops the guest. Its last writes may wait for a target that does not
// answer, and QEMU with them.
func (h *handover) stopMirrored(ctx context.Context) error {
	if h.disks == nil {
		return h.instance.Stop(ctx)
	}
	stuck := time.AfterFunc(finishWithin, func() { h.instance.CutMirrors(ctx) })
	defer stuck.Stop()
	finished, err := h.instance.StopMirrored(ctx)
	if err == nil {
		h.waitFinished(ctx, finished)
	}
	return err
}
