package explore

import (
	"fmt"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// always checks what must hold in every state.
func (s *search) always(w *world) string {
	m := &w.m
	switch {
	case w.src.inEffect() && w.tgt.inEffect():
		return "two instances are in effect"
	case w.src.qemu == runs && w.tgt.qemu == runs:
		return "two instances run, on the same disks"
	case w.src.inEffect() && w.ran && !w.risked:
		return "the source is in effect, though the target has run: what it did is lost"
	case m.State == migration.Succeeded && m.Cause == "" && len(m.Pending) > pending(m, migration.StartCopy): // but the measurement
		return "it succeeded without a word of what is left to do"
	case m.State == migration.Copying && w.sourceEnd:
		return "a source that has ended is waited for as long as a copy may take"
	case m.TakenBack && !m.Committed:
		return "the VM is taken back that was never given"
	case !s.Locked(m) && pending(m, migration.RunTarget)+pending(m, migration.ResumeSource) > 0:
		return "the VM is free for others, and a host may yet be told to run it"
	case s.givenUp(m) && (w.src.qemu == runs || w.tgt.qemu == runs):
		return "the VM is given up, so that it may be started anew, and an instance runs"
	case m.Sequence > sequenceMax:
		return "it orders without end"
	}
	return ""
}

// givenUp: the VM is free for others and counts as down, so it may be started anew.
func (s *search) givenUp(m *migration.Migration) bool { return !s.Locked(m) && s.Down(m) }

// pending counts the commands of a kind that are not answered.
func pending(m *migration.Migration, kind migration.EffectKind) (n int) {
	for _, effect := range m.Pending {
		if effect.Kind == kind {
			n++
		}
	}
	return n
}

// sequenceMax is more than one migration ever orders.
const sequenceMax = 12

// checkDecision checks what the core makes of an event.
func (w *world) checkDecision(next *migration.Migration, effects []migration.Effect, e migration.Event) {
	asked := e.Kind == migration.TimerFired || e.Kind == migration.CancelAsked
	ended := w.sourceEnd || w.endsSource(e)
	w.wrong(e.Kind == migration.HostLost && !w.m.Involves(fleet.HostName(e.From)), "it heeds the loss of a host that has no part in it")
	w.wrong(e.Kind == migration.HostLost && w.m.Over(), "it is over, and its record is changed")
	w.wrong(e.Kind == migration.TimerFired && !e.Due.Equal(present), "it heeds a deadline that is no more")
	undone := next.State == migration.RollingBack && (w.m.State == migration.Copying || w.m.State == migration.Switching)
	resumes := w.m.Unheld && !w.m.SourceSent // it may have run on before it ended
	w.wrong(ended && !asked && undone && w.tgt.qemu == loaded && w.tgt.role == arriving && !resumes,
		"it is undone, though the source has ended and the target has everything")
	for _, effect := range effects {
		w.wrong(ended && effect.Kind == migration.ResumeSource, "a source is to go on that has ended")
	}
	w.wrong(ended && next.State == migration.Aborted && next.Committed, "the VM is given back to a source that has ended")
}

// checkSourceEnds checks a command that ends the source. Of a lost target that was
// to run nobody can say that it never did.
func (w *world) checkSourceEnds() {
	w.wrong(w.src.alive() && w.m.Owner().Host == w.m.Source, "the source is ended, and the VM is there")
	w.wrong(w.src.alive() && !w.opened && !w.m.TargetLost, "the source is ended, and the target never ran")
}

// checkForwardingEnds checks a command that ends the forwarding. Frames that the
// guest had not read are sent on by the time that the source has measured the
// copy, or is retired.
func (w *world) checkForwardingEnds() {
	if !w.src.forwards() || w.overdue || w.m.TargetGone {
		return
	}
	w.wrong(!w.known, "the forwarding ends, and hosts still send to the source")
	measured := false
	for _, r := range w.said {
		measured = measured || r.kind == migration.SwitchMeasured
	}
	w.wrong(w.src.alive() && !measured, "the forwarding ends before what the guest had not read was sent on")
}

// checkFrames checks a command that removes the target's taps.
func (w *world) checkFrames(e migration.Effect) {
	if !w.waiting || !w.src.alive() || w.m.TargetGone {
		return
	}
	w.wrong(!e.ReturnFrames, "frames are lost that wait at the target")
	w.wrong(e.ReturnFrames && w.src.gate != open, "frames return to a gate that is closed")
}

// forwards: what is sent to the VM's old place goes to the target.
func (h *host) forwards() bool { return h.exists && h.gate == redirect && !h.off }

// atRest checks what must hold where nothing more happens by itself.
func (s *search) atRest(w *world) string {
	if flaw := s.recordAtRest(w); flaw != "" {
		return flaw
	}
	m := &w.m
	owner := m.Owner()
	on, off := &w.src, &w.tgt
	if owner.Host == m.Target {
		on, off = &w.tgt, &w.src
	}
	stuck := m.State == migration.NeedsOperator
	switch {
	case off.inEffect():
		return "what is in effect is not what the record says"
	case stuck && on.inEffect():
		return "an operator is needed, and the VM runs where the record says"
	case !on.inEffect() && !on.killed && !stuck:
		return "the VM runs nowhere, and no fault has killed it"
	case !on.inEffect() && w.src.alive() && !w.src.off && !(stuck && m.AwaitsTarget() && w.tgt.off):
		return "the VM is down, and the source could go on"
	case on.inEffect() && on.epoch != owner.Epoch:
		return fmt.Sprintf("it is in effect at epoch %d, and the record says %d", on.epoch, owner.Epoch)
	case on.inEffect() && on.role != alone:
		return "it is not finished where it runs: its agent takes it for " + on.role
	case !off.off && off.exists && !stuck:
		return "an instance is left on the host that the VM is not on"
	case s.givenUp(m) && (!w.src.off && w.src.exists || !w.tgt.off && w.tgt.exists):
		return "an instance is left of a VM that is given up"
	case !s.Locked(m) && !s.Down(m) && (stuck || on.unsaid):
		return "the VM is free for others, runs nowhere, and does not count as down"
	}
	return ""
}

// missing: the host is off, and may be waited for.
func (h *host) missing() bool { return h.off && !h.declared }

// mayRunOn: the source's host is missing, and may say that it ran on, by the refusal
// of a target of which nobody has heard more.
func (w *world) mayRunOn() bool {
	return w.src.missing() && pending(&w.m, migration.ReleaseSource) > 0 && w.tgt.declared && !w.m.TargetRuns && !w.sourceEnd
}

// recordAtRest checks the record by itself, and against what faults have done.
func (s *search) recordAtRest(w *world) string {
	m := &w.m
	stuck := m.State == migration.NeedsOperator
	missing := w.src.missing() || w.tgt.missing()
	switch {
	case !m.State.Final():
		return "it rests in " + string(m.State)
	case m.State != migration.Succeeded && m.Cause == "":
		return "it ended without a cause"
	case stuck && !w.src.off && !w.tgt.off && !w.src.killed && !w.tgt.killed:
		return "an operator is needed, and all hosts and instances live"
	case stuck && m.TargetRuns && !w.tgt.declared:
		return "an operator is needed, though the target has run"
	case stuck && !m.CopyStarted:
		return "an operator is needed, though the source was told nothing"
	case stuck && s.Locked(m) && !missing:
		return "the VM is locked, and no host is missing"
	case stuck && s.Locked(m) && pending(m, migration.RunTarget)+pending(m, migration.ResumeSource) == 0 && !w.mayRunOn():
		return "the VM is locked for ever"
	case len(m.Pending) > 0 && !missing:
		return fmt.Sprintf("%v is pending for ever", m.Pending)
	}
	return ""
}
