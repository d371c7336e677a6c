package explore

import (
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// take is an agent that carries a command out, once.
func (w *world) take(e migration.Effect) {
	h, do := &w.src, w.takeAtSource
	if e.Host == w.m.Target {
		h, do = &w.tgt, w.takeAtTarget
	}
	bit := uint16(1) << e.Sequence
	if h.exists && h.told&bit != 0 { // what it was told goes with the instance
		return
	}
	if failed := do(e); !failed { // one that failed may be tried again
		h.told |= bit
	}
	h.newest = max(h.newest, e.Sequence)
}

func (w *world) takeAtSource(e migration.Effect) (failed bool) {
	h := &w.src
	gone := report{kind: migration.SourceFailed, gone: true}
	switch e.Kind {
	case migration.StartCopy:
		switch {
		case !h.exists || h.qemu == dead:
			w.say(gone)
			return true
		case h.role == ranOn:
			w.say(report{kind: migration.SourceFailed})
			return true
		}
		h.role, h.copying = source, true
	case migration.ResumeSource:
		if !h.exists || h.qemu == dead {
			w.say(gone)
			return true
		}
		h.role, h.copying, h.gate, h.qemu = alone, false, open, runs
		h.epoch = max(h.epoch, e.Epoch)
		w.say(report{kind: migration.SourceResumed, answers: e.Sequence})
	case migration.RetireSource, migration.ReleaseSource:
		switch {
		case h.exists && h.role != source && h.qemu != dead: // it runs alone, or on
			w.say(report{kind: migration.SourceFailed})
			return true
		case e.Kind == migration.RetireSource:
			w.checkSourceEnds()
			h.end()
			w.say(report{kind: migration.SourceRetired, answers: e.Sequence})
		default:
			w.checkSourceEnds()
			w.checkForwardingEnds()
			h.remove()
			w.say(report{kind: migration.SourceReleased, answers: e.Sequence})
		}
	}
	return false
}

// end ends the instance, as its agent does.
func (h *host) end() {
	h.copying = false
	if h.alive() {
		h.qemu = dead
	}
}

func (h *host) remove() {
	h.end()
	h.exists, h.role, h.gate = false, "", shut
}

func (w *world) takeAtTarget(e migration.Effect) (failed bool) {
	h := &w.tgt
	switch e.Kind {
	case migration.PrepareTarget:
		switch {
		case !h.exists:
			h.exists, h.role, h.epoch, h.gate, h.qemu = true, arriving, w.m.Epoch+1, shut, waits
		case h.role != arriving || h.qemu == dead:
			w.say(w.targetGone())
			return true
		}
		w.say(report{kind: migration.TargetPrepared, answers: e.Sequence})
	case migration.RunTarget:
		return w.runTarget(e.Sequence)
	case migration.FinishTarget:
		w.wrong(w.src.forwards() && !w.unreleased, "the target closes the tunnel, and the source still sends by it")
		if h.exists && h.role == arrived {
			h.role, h.gate = alone, open
		}
		w.say(report{kind: migration.TargetFinished, answers: e.Sequence})
	case migration.ReleaseTarget:
		w.checkFrames(e)
		w.waiting = false
		h.remove()
		w.say(report{kind: migration.TargetReleased, answers: e.Sequence})
	}
	return false
}

// runTarget opens the gate; the vCPUs run with the next step of the agent.
func (w *world) runTarget(sequence uint64) (failed bool) {
	h := &w.tgt
	switch {
	case !h.exists:
		w.say(report{kind: migration.TargetFailed, gone: true})
		return true
	case h.role == refused:
		w.say(report{kind: migration.TargetRefused})
		return false
	case h.role == arrived || h.role == alone:
		w.say(report{kind: migration.TargetRunning, answers: sequence})
		return false
	case h.qemu == dead:
		w.say(w.targetGone())
		return true
	case h.qemu != loaded && h.qemu != runs:
		w.say(report{kind: migration.TargetFailed})
		return true
	}
	h.gate, w.opened = open, true
	return true // it is answered when it runs
}

// targetGone is the end of a target's instance, whose gates tell whether it may
// have run.
func (w *world) targetGone() report {
	return report{kind: migration.TargetFailed, gone: true, unrun: w.tgt.role == arriving && w.tgt.gate == shut}
}

// adds adds a step that can happen next, when it can.
type adds func(what string, when bool, do func(*world))

// hostSteps gives what agents and QEMUs do by themselves next.
func (w *world) hostSteps(x Options) (steps []step) {
	add := func(what string, when bool, do func(*world)) {
		if when {
			steps = append(steps, step{what, do})
		}
	}
	w.copySteps(x, add)
	w.runSteps(x, add)
	for _, side := range w.sides() {
		h := w.at(side.host)
		add(side.name+": the agent starts again", !h.up && !h.off, func(w *world) { w.restart(w.at(side.host)) })
	}
	return steps
}

// copySteps are those of the copy, until the target has everything or it failed.
func (w *world) copySteps(x Options, add adds) {
	s, t := &w.src, &w.tgt
	follows := s.up && s.exists && s.role == source && s.copying
	add("source: its gate is shut, and the guest stopped", follows && s.qemu == runs && s.gate == open && t.qemu == waits && !w.cut, func(w *world) {
		w.src.gate, w.src.qemu, w.waiting = redirect, stopped, true
	})
	add("source: QEMU is let go on", follows && s.qemu == stopped && !w.cut, func(w *world) {
		w.src.qemu = sending
	})
	add("source: says that it has stopped", follows && s.gate == redirect && s.qemu != runs && s.qemu != dead, func(w *world) {
		w.say(report{kind: migration.SourceStopped})
	})
	add("target: QEMU has loaded everything", s.qemu == sending && t.qemu == waits && !w.cut, func(w *world) {
		w.tgt.qemu = loaded
	})
	add("source: QEMU knows that everything was loaded", s.qemu == sending && t.qemu == loaded && !w.cut, func(w *world) {
		w.src.qemu = finished
	})
	add("source: says that everything was sent", follows && s.qemu == finished, func(w *world) {
		for _, e := range w.sent {
			if e.Kind == migration.StartCopy {
				w.say(report{kind: migration.SwitchMeasured, answers: e.Sequence})
			}
		}
	})
	// Behind whatever its gate is, but not without the images, which the target takes
	// when it is to run.
	add("source: QEMU runs on by itself", x.AutoResume && w.cut && (s.qemu == stopped || s.qemu == sending && t.qemu != runs), func(w *world) {
		w.src.qemu, w.stale = runs, w.tgt.qemu == loaded
	})
	add("source: QEMU says that the copy failed", follows && w.cut && s.qemu != dead && s.qemu != finished, func(w *world) {
		w.src.copying = false
		w.say(report{kind: migration.SourceFailed})
	})
	add("target: QEMU says that the stream broke", t.up && t.exists && t.role == arriving && t.qemu == waits && (w.cut || s.qemu == dead && s.exists && s.role == source), func(w *world) {
		w.tgt.qemu = failed
		w.say(report{kind: migration.TargetFailed})
	})
}

// runSteps are those that decide where the guest runs.
func (w *world) runSteps(x Options, add adds) {
	s, t := &w.src, &w.tgt
	started := t.up && t.exists && t.role == arriving && t.gate == open && t.qemu == loaded
	add("target: can't have the images", started && s.qemu == runs, func(w *world) {
		w.say(report{kind: migration.TargetFailed})
	})
	add("target: runs", started && s.qemu != runs, func(w *world) {
		w.wrong(w.stale, "the target runs, and what the source wrote since is in its images")
		w.tgt.qemu, w.ran, w.waiting = runs, true, false
	})
	add("target: writes down that it runs", t.up && t.exists && t.role == arriving && t.qemu == runs, func(w *world) {
		w.tgt.role = arrived
		for _, e := range w.m.Pending {
			if e.Kind == migration.RunTarget {
				w.say(report{kind: migration.TargetRunning, answers: e.Sequence})
			}
		}
	})
	add("all hosts send to the target directly", w.m.TargetRuns && !w.known, func(w *world) { w.known = true })
	asks := s.up && s.exists && s.role == source && s.gate == redirect && s.qemu != dead
	add("target: asked by its source, gives up", asks && t.up && t.exists && t.role == arriving && (t.gate == shut || x.GiveUpAfterRun), func(w *world) {
		w.tgt.role = refused
		w.say(report{kind: migration.TargetRefused})
	})
	add("target: returns the frames to its source, and has ended", s.role == ranOn && s.up && t.up && t.exists && t.role == refused && t.alive(), func(w *world) {
		w.tgt.end()
	})
	add("source: runs on, by the target's refusal", asks && t.exists && t.role == refused, func(w *world) {
		w.src.role, w.src.copying, w.src.gate, w.src.qemu = ranOn, false, open, runs
		w.say(report{kind: migration.SourceRanOn})
	})
}

// restart is an agent that takes over what an earlier one has left.
func (w *world) restart(h *host) {
	h.up = true
	switch {
	case !h.exists:
	case h.role == refused:
		w.say(report{kind: migration.TargetRefused})
	case h.role == ranOn && h.qemu != dead:
		h.gate, h.qemu = open, runs
		w.say(report{kind: migration.SourceRanOn})
	}
}

// faultSteps gives what can go wrong next.
func (w *world) faultSteps(x Options) (steps []step) {
	if w.faults == 0 {
		return nil
	}
	add := func(what string, when bool, do func(*world)) {
		if when {
			steps = append(steps, step{"FAULT: " + what, func(w *world) {
				w.faults--
				do(w)
			}})
		}
	}
	if !x.HostsOnly {
		w.qemuFaults(add)
	}
	for _, side := range w.sides() {
		die := func(w *world) {
			h := w.at(side.host)
			h.up, h.copying, h.told, h.newest = false, false, 0, 0
			w.sent = without(w.sent, side.host)
		}
		h := w.at(side.host)
		add("the "+side.name+"'s agent dies", h.up && !x.HostsOnly, die)
		add("the "+side.name+"'s host dies", !h.off, func(w *world) {
			die(w)
			h := w.at(side.host)
			h.off, h.killed = true, h.killed || h.alive()
			h.end()
			w.waiting = w.waiting && side.host == w.m.Source
		})
	}
	return steps
}

// qemuFaults are those of the QEMUs, and of the stream between them.
func (w *world) qemuFaults(add adds) {
	add("the stream is cut", !w.cut && w.tgt.alive(), func(w *world) { w.cut = true })
	add("the target's QEMU does not run at first", w.tgt.up && w.tgt.role == arriving && w.tgt.gate == open && w.tgt.qemu == loaded, func(w *world) {
		w.say(report{kind: migration.TargetFailed})
	})
	add("the source's QEMU is killed", w.src.alive(), func(w *world) {
		w.src.qemu, w.src.killed = dead, true
		if w.src.up && (w.src.role == source || w.src.role == ranOn) {
			w.say(report{kind: migration.SourceFailed, gone: true})
		}
	})
	add("the target's QEMU is killed", w.tgt.alive(), func(w *world) {
		gone := w.targetGone()
		w.tgt.qemu, w.tgt.killed = dead, true
		if w.tgt.up && (w.tgt.role == arriving || w.tgt.role == arrived) {
			w.say(gone)
		}
	})
}

func without(effects []migration.Effect, at fleet.HostName) (kept []migration.Effect) {
	for _, e := range effects {
		if e.Host != at {
			kept = append(kept, e)
		}
	}
	return kept
}
