package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/qemu"
)

const (
	// holdDowntime is the limit for a QEMU that is held: once the guest is
	// stopped, what can be sent in that time is sent together with the devices.
	holdDowntime = 20 * time.Millisecond
	// leastDowntime and leastSwitchover keep a QEMU that can't be held from
	// ending the copy by itself, as far as it lets us: their product is the most
	// that it may leave, one byte. With less, which is zero to QEMU, it would
	// not look exactly, and would end after the first pass whatever is left.
	leastDowntime   = time.Millisecond
	leastSwitchover = fleet.BytesPerSecond(1000)

	// ringWithin is how long QEMU may take to read what came before the gate
	// was closed, while the guest still runs and frames wait at the target.
	// Usually it takes well below a millisecond, on a host that is overloaded
	// many; of what it leaves, one frame is at risk.
	ringWithin = time.Second
	// tellWithin is how long the report of the stop may wait for QEMU to have
	// sent the last pages: the server's work would compete with that for
	// processors, and the report is wanted for the commit only.
	tellWithin = 10 * time.Millisecond
	// measureWithin is how long the measurement may wait for the source's end.
	// It would compete with the commit for processors, and nobody waits for it
	// but where QEMU was not held: there the commit does.
	measureWithin = 200 * time.Millisecond
	// progressEvery is the interval between reports of the copy.
	progressEvery = 200 * time.Millisecond
)

// handover is one copy from its start to the moment at which the target has
// everything. It runs in one goroutine.
type handover struct {
	*machine
	command     *godwitv1.Command
	remote      netip.Addr
	outgoing    qemu.Outgoing
	can         qemu.Abilities // of the instance, which may be older than what is installed
	blackoutMax time.Duration
	disks       *mirrors // nil without local disks

	began time.Time // the copy; if an earlier agent has begun it, that of the memory
	pass  int
	left  fleet.Bytes // by the pass before
	// The pass that goes on, and the rate of the one before it; 0 if it was too short.
	passBegan time.Time
	passSent  fleet.Bytes
	passRate  fleet.BytesPerSecond
	marks     godwitv1.SourceMarks
	stopper   string          // who stopped the guest: "agent", "qemu", "" while it runs
	silent    bool            // the target does not say when it has caught up
	drains    chan drained    // when the taps have been drained
	retires   <-chan struct{} // closed when the source is to end
	tellStop  func()          // reports the stop, once
	progress  qemu.Progress
	why       *godwitv1.StopReason // of the end of the copy; nil if nobody looked

	looked   fleet.Bytes // that watchOnlyPass saw left last
	lookedAt time.Time
}

// run copies, stops the guest and sends the rest. If ctx ends, it leaves
// everything as it stands: resumeSource takes it from there.
func (h *handover) run(ctx context.Context) {
	err := h.copyAndSwitch(ctx)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		h.measure(ctx)
	case endedWith(h.instance, err): // watchEnd says it
	default:
		h.fact(h.command.GetSubject(), pledge.SourceFailed(err, false))
	}
}

func (h *handover) copyAndSwitch(ctx context.Context) error {
	events := h.instance.Subscribe()
	defer events.Close()
	if done, err := h.begin(ctx); done || err != nil {
		return err
	}
	reports := time.NewTicker(progressEvery)
	defer reports.Stop()
	var looks <-chan time.Time
	if h.can.OnePass {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		looks = ticker.C
	}
	for {
		select {
		case event, open := <-events.Events():
			if !open {
				return fmt.Errorf("follow the copy: %w", events.Err())
			}
			done, err := h.take(ctx, event)
			if done || err != nil {
				return err
			}
		case <-reports.C:
			if err := h.reportPass(ctx); err != nil {
				return err
			}
		case <-looks:
			if err := h.watchOnlyPass(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin starts the copy, or takes one over that an earlier agent has started;
// done when the target has everything already.
func (h *handover) begin(ctx context.Context) (done bool, err error) {
	before, err := h.instance.Progress(ctx)
	if err != nil {
		return false, err
	}
	state, err := h.instance.Status(ctx)
	if err != nil {
		return false, err
	}
	// QEMU says that it has completed a moment before its state says so.
	sent := state.Sent() || before.Status == qemu.StatusCompleted && state.Switching()
	h.began = time.Now().Add(-before.TotalTime)
	if !before.Status.UnderWay() && !sent {
		h.began = time.Now()
		if err := h.copyDisks(ctx); err != nil {
			return false, err
		}
		return false, h.instance.SendTo(ctx, h.outgoing)
	}
	return sent, h.continueCopy(ctx, before, state, sent)
}

// continueCopy goes on where an earlier agent has left the copy. Events that it
// missed are made up from what QEMU says of itself now, with the present time.
func (h *handover) continueCopy(ctx context.Context, before qemu.Progress, state qemu.RunState, sent bool) error {
	h.pass = before.Pass
	if state.Running() {
		if h.leaving() {
			return h.stopGuest(ctx)
		}
		return nil
	}
	now := timestamppb.Now()
	h.stopper = "agent"
	h.marks.Stopped = now
	if err := h.guestStopped(ctx); err != nil {
		return err
	}
	switch {
	case before.Status == qemu.StatusPreSwitchover:
		h.marks.PreSwitchover = now
		return h.proceed(ctx)
	case before.Status == qemu.StatusDevice || sent:
		h.marks.PreSwitchover, h.marks.Continued, h.marks.Completed = now, now, now
		h.tellStop()
		go h.drainLeft(ctx)
	}
	return nil
}

// leaving: frames for the guest go to the target already.
func (h *handover) leaving() bool {
	for _, port := range h.allPorts() {
		if gate, err := port.tap.Gate(); err == nil && gate.Mode == network.Leaving {
			return true
		}
	}
	return false
}

// take deals with one event of QEMU; done when the target has everything.
func (h *handover) take(ctx context.Context, event qemu.Event) (done bool, err error) {
	switch event.Kind {
	case qemu.PassBegun:
		return false, h.passBegun(ctx, event.Pass)
	case qemu.Stopped:
		return false, h.stopped(ctx, event.At)
	case qemu.MigrationChanged:
		return h.statusChanged(ctx, event)
	}
	return false, nil
}

// stopped: the guest stands still, as it was told or by itself.
func (h *handover) stopped(ctx context.Context, at time.Time) (err error) {
	if h.marks.Stopped != nil { // known since the copy was taken over
		return nil
	}
	h.marks.Stopped = timestamppb.New(at)
	if h.stopper == "" {
		err = h.stoppedByQEMU(ctx)
	} else {
		err = h.guestStopped(ctx)
	}
	if err != nil {
		return err
	}
	return h.proceed(ctx)
}

func (h *handover) statusChanged(ctx context.Context, event qemu.Event) (done bool, err error) {
	switch event.Status {
	case qemu.StatusPreSwitchover:
		if h.marks.PreSwitchover != nil {
			return false, nil
		}
		h.marks.PreSwitchover = timestamppb.New(event.At)
		return false, h.proceed(ctx)
	case qemu.StatusCompleted:
		h.marks.Completed = timestamppb.New(event.At)
		return true, nil
	case qemu.StatusFailed, qemu.StatusCancelled:
		cause := "the copy was " + string(event.Status)
		if now, err := h.instance.Progress(ctx); err == nil && now.Error != "" {
			cause += ": " + now.Error
		}
		return false, &fleet.Error{Code: fleet.Failed, Op: "copy", Subject: "vm " + string(h.key.vm), Cause: cause}
	}
	return false, nil
}

// proceed lets QEMU send the devices' state, once it waits for that and the
// gate is closed. QEMU may say the one before the other.
func (h *handover) proceed(ctx context.Context) error {
	if h.marks.Stopped == nil || h.marks.PreSwitchover == nil {
		return nil
	}
	if err := h.awaitMirrors(ctx); err != nil {
		return err
	}
	h.marks.Continued = timestamppb.Now()
	if err := h.instance.ContinueSwitch(ctx); err != nil {
		return err
	}
	h.tellStop()
	go h.drainLeft(ctx) // while QEMU sends the devices
	return nil
}

// stopGuest closes the gate and then stops the guest. In this order no frame
// can come into QEMU after its device has stopped, where it would be lost.
func (h *handover) stopGuest(ctx context.Context) error {
	h.stopper = "agent"
	h.announce()
	if err := h.redirect(network.Leaving); err != nil {
		return err
	}
	h.awaitRings(ctx)
	return h.stopMirrored(ctx)
}

// guestStopped takes the guest's last right away.
func (h *handover) guestStopped(ctx context.Context) error {
	h.finishMirrors(ctx)
	if err := h.redirect(network.Redirect); err != nil {
		return err
	}
	said := &godwitv1.SourceStopped{StoppedBy: h.stopper, Stopped: h.marks.Stopped, Why: h.why}
	h.tellStop = sync.OnceFunc(func() {
		h.fact(h.command.GetSubject(), &godwitv1.Report{Event: &godwitv1.Report_SourceStopped{SourceStopped: said}})
	})
	time.AfterFunc(tellWithin, h.tellStop)
	h.awaitDecision()
	return nil
}

// stoppedByQEMU: QEMU ended the copy by itself, and now waits. The gate is
// closed as fast as can be.
func (h *handover) stoppedByQEMU(ctx context.Context) error {
	h.stopper = "qemu"
	if err := h.guestStopped(ctx); err != nil {
		return err
	}
	status, err := h.instance.Status(ctx)
	if err != nil {
		return err
	}
	if !status.Switching() {
		return &fleet.Error{
			Code: fleet.Failed, Op: "copy", Subject: "vm " + string(h.key.vm), Cause: fmt.Sprintf("the guest stopped by itself: %s", status),
		}
	}
	return nil
}

// redirect sends the frames for the guest to the target from now on.
func (h *handover) redirect(mode network.Mode) error {
	err := h.pointGates(mode, h.remote)
	if h.marks.GateFlipped == nil {
		h.marks.GateFlipped = timestamppb.Now()
	}
	return err
}

// awaitRings lets the guest read what came before the gate was closed. A guest
// that is too slow is not waited for.
func (h *handover) awaitRings(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ringWithin)
	defer cancel()
	for _, port := range h.allPorts() {
		if err := port.tap.WaitEmpty(ctx); err != nil {
			h.agent.log.Warn("the guest does not read its frames", "vm", h.key.vm, "port", port.Name, "error", err)
			return
		}
	}
}

// drained is what became of the frames that the guest has not read.
type drained struct {
	frames int
	err    error
}

// drainLeft sends the frames on that the guest has not read.
func (h *handover) drainLeft(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, returnWithin)
	defer cancel()
	frames, err := h.drain(ctx)
	if errors.Is(err, context.Canceled) { // then the guest reads them itself
		err = nil
	}
	if err != nil {
		h.agent.log.Error("frames left at the source could not all be sent on", "vm", h.key.vm, "error", err)
	}
	h.drains <- drained{frames, err}
}

// awaitRetired waits for the source's end, and not for long; false if ctx ends.
func (h *handover) awaitRetired(ctx context.Context) bool {
	late := time.NewTimer(measureWithin)
	defer late.Stop()
	select {
	case <-h.retires:
	case <-late.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// measure reports how the switch went.
func (h *handover) measure(ctx context.Context) {
	if h.can.CanHold && !h.awaitRetired(ctx) {
		return
	}
	progress, err := h.instance.Progress(ctx)
	if err != nil { // what was last seen of the copy has to do
		h.agent.log.Warn("the copy's measurements are not complete", "vm", h.key.vm, "error", err)
		progress = h.progress
	}
	left := <-h.drains
	h.marks.Drained = timestamppb.Now()
	h.answer(h.command, &godwitv1.Report{Event: &godwitv1.Report_SwitchMeasured{SwitchMeasured: &godwitv1.SwitchMeasured{
		Marks: &h.marks, SentBytes: uint64(progress.Transferred), Passes: int32(h.pass),
		FramesDrained: int64(left.frames), DrainError: textOf(left.err), StoppedBy: h.stopper,
	}}})
}
