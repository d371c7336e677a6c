package sim

import (
	"fmt"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

// The pauses of an agent, as the real one has them.
const (
	askAfter    = 250 * time.Millisecond
	askWithin   = 2 * time.Second
	askAgainMin = 100 * time.Millisecond
	askAgainMax = 2 * time.Second
	switchCost  = 500 * time.Microsecond
	shrinkLeast = 0.7
	passesMax   = 40 // after so many the guest is stopped whatever is left
)

// handover is one copy away from here, in a task of its own.
type handover struct {
	*keeper
	command  *godwitv1.Command
	want     *godwitv1.StartCopy
	events   mailbox[news]
	stopped  bool
	waits    bool // QEMU does, for leave to send the devices
	toldStop bool
	sent     bool
}

func (k *keeper) startCopy(command *godwitv1.Command, want *godwitv1.StartCopy) *godwitv1.Report {
	own := k.role()
	switch {
	case k.m.q.ended():
		return pledge.SourceFailed(gone("copy"), true)
	case k.runsOn():
		return pledge.SourceFailed(errRunsOn, false)
	}
	own.role, own.migration = pledge.Source, command.GetSubject()
	own.peer = k.hostNamed(fleet.HostName(want.GetTarget()))
	own.switchMax = time.Duration(want.GetSwitchMaxMs()) * time.Millisecond
	if err := k.note(own); err != nil {
		return pledge.SourceFailed(err, k.m.q.ended())
	}
	k.m.tunnel, k.m.opened = tunnelOf(want.GetNetworks()), true
	h := &handover{keeper: k, command: command, want: want}
	k.copying = k.spawn(k.proc, func() {
		h.run()
		k.copying = nil
		if k.copied != nil {
			k.copied(nil)
		}
	})
	return nil
}

func tunnelOf(networks []*godwitv1.PortNetwork) fleet.TunnelID {
	if len(networks) == 0 {
		return 0
	}
	return fleet.TunnelID(networks[0].GetTunnel())
}

func (h *handover) run() {
	h.m.q.listen = func(n news) {
		h.died(n)
		h.events.put(n)
	}
	err := h.copyAndSwitch()
	switch {
	case err == nil:
		h.sleep(h.between(time.Millisecond, 20*time.Millisecond))
		h.answer(h.command, &godwitv1.Report{Event: &godwitv1.Report_SwitchMeasured{SwitchMeasured: &godwitv1.SwitchMeasured{StoppedBy: "agent"}}})
	case h.m.q.ended(): // died says it
	default:
		h.fact(h.command.GetSubject(), pledge.SourceFailed(err, false))
	}
}

func (h *handover) next() news {
	n, _ := h.events.next(h.loop, func() bool { return false })
	return n
}

func (h *handover) copyAndSwitch() error {
	if err := h.begin(); err != nil {
		return err
	}
	for !h.sent {
		if err := h.take(h.next()); err != nil {
			return err
		}
	}
	return nil
}

// begin starts the copy, or goes on where an earlier agent has left it. Events
// that it missed are made up from what QEMU says of itself.
func (h *handover) begin() error {
	q := h.m.q
	if err := q.command(func() error { return nil }); err != nil {
		return err
	}
	switch {
	case q.out == idle || q.out == failed:
		if !q.runs { // an earlier copy failed after the stop
			return &fleet.Error{Code: fleet.Failed, Op: "copy", Cause: "the guest stands still, and the copy has failed"}
		}
		return q.sendTo(h.role().peer, uint16(h.want.GetTargetPort()))
	case q.runs && h.m.gate == leaving:
		return h.stopGuest()
	case q.runs:
		return nil
	}
	if err := h.guestStopped(); err != nil {
		return err
	}
	switch q.out {
	case preSwitchover:
		h.waits = true
		return h.goOnSending()
	case device:
		h.tellStop()
		h.m.drain()
	case completed:
		h.tellStop()
		h.m.drain()
		h.sent = true
	}
	return nil
}

// take deals with one event of QEMU.
func (h *handover) take(n news) error {
	switch n.kind {
	case passBegun:
		h.progress(n)
		if h.stopped || n.pass < 2 || !h.converged(n) {
			return nil
		}
		return h.stopGuest()
	case guestHalted:
		return h.stoppedByQEMU()
	case preSwitched:
		h.waits = true
		return h.goOnSending()
	case copyCompleted:
		h.sent = true
	case copyFailed:
		return &fleet.Error{Code: fleet.Failed, Op: "copy", Cause: "the copy was failed"}
	case processDied:
		return gone("copy")
	}
	return nil
}

func (h *handover) progress(n news) {
	h.say(&godwitv1.Report{Subject: h.command.GetSubject(), Epoch: uint64(h.m.epoch), Event: &godwitv1.Report_CopyProgress{CopyProgress: &godwitv1.CopyProgress{
		Pass: int32(n.pass), RemainingBytes: uint64(n.left), TotalBytes: uint64(h.m.vm.memory), PassBegins: true,
	}}})
}

// converged: what is left takes hardly any time, or another pass would not
// leave less and this one fits into the blackout that is allowed.
func (h *handover) converged(n news) bool {
	shrinks := n.before == 0 || n.left < shrinkLeast*n.before
	allowed := time.Duration(h.want.GetBlackoutMaxMs()) * time.Millisecond
	return n.cost <= switchCost || !shrinks && n.cost <= allowed || n.pass >= passesMax
}

// stopGuest closes the gate and then stops the guest.
func (h *handover) stopGuest() error {
	h.delicate()
	if !h.bug(OpenGate) {
		h.m.setGate(leaving, h.role().peer)
	}
	h.sleep(h.between(100*time.Microsecond, 5*time.Millisecond))
	if err := h.m.q.pause(); err != nil {
		return err
	}
	return h.guestStopped()
}

// stoppedByQEMU closes the gate, unless that is done.
func (h *handover) stoppedByQEMU() error {
	if h.stopped {
		return nil
	}
	h.delicate()
	if err := h.guestStopped(); err != nil {
		return err
	}
	return h.goOnSending()
}

// guestStopped takes the guest's last right away.
func (h *handover) guestStopped() error {
	h.stopped = true
	if !h.bug(OpenGate) {
		h.m.setGate(redirect, h.role().peer)
	}
	h.at(h.proc, 10*time.Millisecond, h.tellStop)
	h.awaitDecision()
	return nil
}

func (h *handover) tellStop() {
	if !h.toldStop {
		h.toldStop = true
		h.fact(h.command.GetSubject(), &godwitv1.Report{Event: &godwitv1.Report_SourceStopped{SourceStopped: &godwitv1.SourceStopped{StoppedBy: "agent"}}})
	}
}

// goOnSending lets QEMU send the devices' state, once it waits for that and the gate
// is closed.
func (h *handover) goOnSending() error {
	if !h.stopped || !h.waits {
		return nil
	}
	if err := h.m.q.proceed(); err != nil {
		return err
	}
	h.tellStop()
	if !h.bug(OpenGate) {
		h.m.drain()
	}
	return nil
}

// endCopy stops what startCopy began; QEMU goes on.
func (k *keeper) endCopy() {
	if k.copying != nil {
		k.loop.kill(k.copying)
		k.copying = nil
		if k.m.q != nil {
			k.m.q.listen = k.died
		}
	}
}

func (k *keeper) resumeSource(newEpoch fleet.Epoch) *godwitv1.Report {
	k.endCopy()
	k.decide()
	if k.m.q.ended() {
		return pledge.SourceFailed(gone("resume"), true)
	}
	if err := k.goOn(); err != nil {
		return pledge.SourceFailed(err, k.m.q.ended())
	}
	own := k.role()
	own.role, own.migration, own.peer = pledge.Alone, "", nil
	if err := k.note(own); err != nil {
		return pledge.SourceFailed(err, false)
	}
	k.facts = nil
	if newEpoch > k.m.epoch {
		k.renumber(newEpoch)
	}
	return pledge.SourceResumed()
}

// goOn ends QEMU's copy, opens the gate and lets the vCPUs run on.
func (k *keeper) goOn() error {
	k.m.setGate(pass, nil)
	if err := k.m.q.cancelCopy(); err != nil {
		return err
	}
	return k.m.q.resume()
}

// renumber gives an instance the epoch at which its VM was given back to it.
func (k *keeper) renumber(epoch fleet.Epoch) {
	k.m.judgeAs(epoch)
	k.forget(k)
	next := k.keep(k.m)
	next.reapply(k.m.vm)
}

func (k *keeper) runsOn() bool { return k.role().role == pledge.RanOn && !k.m.q.ended() }

var errRunsOn = &fleet.Error{Code: fleet.Conflict, Op: "end", Cause: "it runs on, by its target's refusal"}

func (k *keeper) retireSource() *godwitv1.Report {
	if k.runsOn() {
		return pledge.SourceFailed(errRunsOn, false)
	}
	if k.copying != nil { // the moment that it needs to report its measurements
		k.await(func(done func(any)) {
			k.copied = done
			k.at(k.proc, commandWithin, func() { done(nil) })
		})
		k.endCopy()
	}
	k.kill()
	return pledge.SourceRetired()
}

func (k *keeper) releaseSource() *godwitv1.Report {
	if k.runsOn() {
		return pledge.SourceFailed(errRunsOn, false)
	}
	k.discard()
	return pledge.SourceReleased()
}

// awaitDecision begins the wait of a source whose guest has stopped.
func (k *keeper) awaitDecision() {
	own := k.role()
	if k.asking != nil || own.switchMax <= 0 || own.peer == nil {
		return
	}
	k.asking = k.spawn(k.proc, func() {
		k.sleep(own.switchMax + askAfter)
		k.askTarget(own)
		k.asking = nil
	})
}

// decide ends the wait: a server has decided, or the instance has ended.
func (k *keeper) decide() {
	if k.asking != nil {
		k.loop.kill(k.asking)
		k.asking = nil
	}
}

func (k *keeper) askTarget(own record) {
	for pause := askAgainMin; ; pause = min(2*pause, askAgainMax) {
		gaveUp, err := true, error(nil)
		if !k.bug(Unasked) {
			gaveUp, err = k.askOnce(own)
		}
		switch {
		case err == nil && gaveUp || err != nil && k.bug(Impatient):
			if k.inTurn(func() error { return k.runOn(own) }) == nil {
				k.haveFramesBack(own)
				return
			}
		case err == nil || pledge.NoneToAsk(err):
			return
		}
		k.sleep(pause)
	}
}

func (k *keeper) askOnce(own record) (gaveUp bool, err error) {
	to := own.peer
	answer, err := k.call(k.node, to.node, to.agent.proc, askWithin, "give up", func() (any, error) {
		return to.agent.giveUp(k.m.vm.name, k.m.epoch+1, own.migration, k.host)
	})
	gaveUp, _ = answer.(bool)
	return gaveUp, err
}

// haveFramesBack asks for the frames that wait at the target, until it has returned
// them or was released.
func (k *keeper) haveFramesBack(own record) {
	to := own.peer
	for pause := askAgainMin; ; pause = min(2*pause, askAgainMax) {
		_, err := k.call(k.node, to.node, to.agent.proc, 2*commandWithin, "return frames", func() (any, error) {
			return nil, to.agent.returnFrames(k.m.vm.name, k.m.epoch+1, own.migration, k.host)
		})
		k.tell("%s: the target gave up, and the source runs on; frames: %v", k.proc.name, err)
		if err == nil || pledge.NoneToAsk(err) {
			return
		}
		k.sleep(pause)
	}
}

// runOn takes the VM's right up again, by the target's refusal.
func (k *keeper) runOn(asked record) error {
	own := k.role()
	allowed, write := own.role.RunOn(own.migration, asked.migration)
	if !allowed {
		return fmt.Errorf("the servers have decided meanwhile")
	}
	if write {
		if err := k.setRole(pledge.RanOn, asked.migration); err != nil {
			return err
		}
	}
	k.endCopy()
	if err := k.goOn(); err != nil {
		return err
	}
	k.tellRanOn(asked)
	return nil
}

func (k *keeper) tellRanOn(own record) {
	k.fact(own.migration, pledge.SourceRanOn("no server decided in time, and the target gave up"))
}
