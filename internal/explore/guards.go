package explore

import (
	"slices"

	"godwit.dev/godwit/internal/migration"
)

// A guard that is inside Step is taken out from outside: what it looks at is
// hidden from Step, and put back into what Step gives.

// guard is what to hide, and when.
type guard struct {
	kinds  []migration.EventKind // any of them; none: all
	states []migration.State     // likewise
	hide   func(m *migration.Migration, e *migration.Event)
	// put puts back what was hidden; before is the true record.
	put func(before migration.Migration, after *migration.Migration)
}

func (g guard) core(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	if len(g.kinds) > 0 && !slices.Contains(g.kinds, e.Kind) || len(g.states) > 0 && !slices.Contains(g.states, m.State) {
		return migration.Step(m, e)
	}
	blind := m
	blind.Pending = slices.Clone(m.Pending)
	g.hide(&blind, &e)
	next, _, verdict := migration.Step(blind, e)
	if verdict != migration.Act {
		return m, nil, verdict
	}
	if g.put != nil {
		g.put(m, &next)
	}
	return next, newer(m, next), verdict
}

// newer gives the effects that a step has added.
func newer(before, after migration.Migration) (effects []migration.Effect) {
	for _, effect := range after.Pending {
		if effect.Sequence > before.Sequence {
			effects = append(effects, effect)
		}
	}
	return effects
}

// given are the events by which the VM comes back after the commit.
var given = []migration.EventKind{migration.TargetRefused, migration.SourceRanOn, migration.ReturnAsked, migration.TargetFailed}

// States, for a guard.
var (
	settling   = []migration.State{migration.Settling}
	rolling    = []migration.State{migration.RollingBack}
	unresolved = []migration.State{migration.NeedsOperator}
	undecided  = []migration.State{migration.Copying, migration.Switching}
)

// takesGone: takeBack does not ask whether the source has ended.
var takesGone = guard{
	kinds: given,
	hide: func(m *migration.Migration, _ *migration.Event) {
		m.SourceGone = m.SourceGone && !m.AwaitsTarget()
	},
	put: func(before migration.Migration, after *migration.Migration) {
		if before.SourceGone {
			after.SourceGone = true
			releaseInstead(after)
		}
	},
}

// releaseInstead is what rollBack does with a source that has ended.
func releaseInstead(after *migration.Migration) {
	for i := range after.Pending {
		if one := &after.Pending[i]; one.Kind == migration.ResumeSource {
			one.Kind, one.Host, one.Epoch = migration.ReleaseTarget, after.Target, 0
		}
	}
}

// forgetsTaken: sourceFailedInRollback does not ask whether the VM was taken back.
var forgetsTaken = guard{
	kinds:  []migration.EventKind{migration.SourceFailed},
	states: []migration.State{migration.RollingBack, migration.NeedsOperator},
	hide:   func(m *migration.Migration, _ *migration.Event) { m.TakenBack = false },
	put: func(before migration.Migration, after *migration.Migration) {
		after.TakenBack = before.TakenBack
	},
}

// impatient: a source that has ended in the switch is rolled back at once.
var impatient = guard{
	kinds: []migration.EventKind{migration.SourceFailed}, states: undecided,
	hide: func(_ *migration.Migration, e *migration.Event) { e.Gone = false },
	put: func(_ migration.Migration, after *migration.Migration) {
		after.SourceGone = true
		releaseInstead(after)
	},
}

// unhold makes a source one whose QEMU is held.
func unhold(m *migration.Migration, _ *migration.Event) { m.Unheld = false }

func putUnheld(before migration.Migration, after *migration.Migration) { after.Unheld = before.Unheld }

// commitsUnheld: askCommit does not ask whether the source may run on by itself.
var commitsUnheld = guard{kinds: []migration.EventKind{migration.TargetLoaded}, hide: unhold, put: putUnheld}

// trustsUnheld: nor does sourceFailedInSwitch; and the target, which asked before,
// asks again.
var trustsUnheld = guard{
	kinds: []migration.EventKind{migration.SourceFailed}, states: undecided,
	hide: unhold,
	put: func(before migration.Migration, after *migration.Migration) {
		after.Unheld = !after.SourceGone
		after.TargetAsked = before.TargetAsked && after.Unheld
	},
}

// outOfOrder: sourceFailedInSwitch does not ask whether the source has ended.
var outOfOrder = guard{
	kinds: []migration.EventKind{migration.SourceFailed}, states: undecided,
	hide: func(m *migration.Migration, _ *migration.Event) { m.SourceGone = false },
	put: func(before migration.Migration, after *migration.Migration) {
		if before.SourceGone {
			after.SourceGone = true
			releaseInstead(after)
		}
	},
}

// hastens: settle does not wait for the addresses.
var hastens = guard{
	kinds:  []migration.EventKind{migration.TargetRunning, migration.SourceRetired, migration.TargetFinished},
	states: settling,
	hide:   func(m *migration.Migration, _ *migration.Event) { m.AddressesKnown = true },
	put: func(before migration.Migration, after *migration.Migration) {
		after.AddressesKnown = before.AddressesKnown
	},
}

// overlooks takes what is pending of a kind from Step's sight.
func overlooks(kind migration.EffectKind, states []migration.State, kinds ...migration.EventKind) guard {
	is := func(e migration.Effect) bool { return e.Kind == kind }
	return guard{
		kinds: kinds, states: states,
		hide: func(m *migration.Migration, _ *migration.Event) { m.Pending = slices.DeleteFunc(m.Pending, is) },
		put:  keeps(kind),
	}
}

// keeps puts back what was pending of a kind.
func keeps(kind migration.EffectKind) func(before migration.Migration, after *migration.Migration) {
	return func(before migration.Migration, after *migration.Migration) {
		for _, effect := range before.Pending {
			if effect.Kind == kind && !slices.Contains(after.Pending, effect) {
				after.Pending = append(after.Pending, effect)
			}
		}
		slices.SortFunc(after.Pending, func(a, b migration.Effect) int { return int(a.Sequence) - int(b.Sequence) })
	}
}

// undropped: a kind of event withdraws no command of a kind.
func undropped(kind migration.EffectKind, when func(before, after migration.Migration) bool) Core {
	return changed(func(before migration.Migration, after *migration.Migration) {
		if when(before, *after) {
			keeps(kind)(before, after)
		}
	})
}

func rollsBack(before, after migration.Migration) bool {
	return after.State == migration.RollingBack && before.State != migration.RollingBack
}

func takesBack(before, after migration.Migration) bool { return after.TakenBack && !before.TakenBack }

func loses(before, after migration.Migration) bool { return after.TargetGone && !before.TargetGone }

func endsRolling(before, after migration.Migration) bool {
	return before.State == migration.RollingBack && after.SourceGone && !before.SourceGone
}

// hasty: settle does not ask whether the forwarding was told to end.
var hasty = released(migration.SourceRetired, migration.AddressesKnown)

// released makes Step believe that the forwarding was told to end.
func released(kinds ...migration.EventKind) guard {
	return guard{
		kinds: kinds, states: settling,
		hide: func(m *migration.Migration, _ *migration.Event) { m.Released = true },
		put:  func(before migration.Migration, after *migration.Migration) { after.Released = before.Released },
	}
}

// imagines makes Step see a command pending that is not.
func imagines(kind migration.EffectKind, e migration.EventKind, states []migration.State) guard {
	return guard{
		kinds: []migration.EventKind{e}, states: states,
		hide: func(m *migration.Migration, _ *migration.Event) {
			m.Pending = append([]migration.Effect{{Kind: kind, Host: m.Source, Sequence: 0}}, m.Pending...)
		},
		put: func(_ migration.Migration, after *migration.Migration) {
			after.Pending = slices.DeleteFunc(after.Pending, func(e migration.Effect) bool { return e.Kind == kind && e.Sequence == 0 })
		},
	}
}

// anytime takes an event that gives the VM back though the target is not awaited.
func anytime(kind migration.EventKind, states []migration.State) guard {
	return guard{
		kinds: []migration.EventKind{kind}, states: states,
		hide: func(m *migration.Migration, _ *migration.Event) {
			m.Committed, m.TargetRuns, m.TakenBack, m.TargetGone = true, false, false, false
		},
		put: func(before migration.Migration, after *migration.Migration) {
			after.Committed, after.TargetRuns = before.Committed, before.TargetRuns
			after.TakenBack, after.TargetGone = after.TakenBack || before.TakenBack, after.TargetGone || before.TargetGone
		},
	}
}

// ended takes an instance that has failed for one that has ended.
func ended(kind migration.EventKind, states []migration.State) guard {
	return guard{
		kinds: []migration.EventKind{kind}, states: states,
		hide: func(_ *migration.Migration, e *migration.Event) { e.Gone = true },
	}
}

// oldTimers heeds every timer that was ever set.
var oldTimers = guard{
	kinds: []migration.EventKind{migration.TimerFired},
	hide: func(m *migration.Migration, e *migration.Event) {
		if m.Timer != nil {
			e.Due = m.Timer.At
		}
	},
}

// failsRunning: a target that has run is lost like one that may have.
var failsRunning = guard{
	kinds: []migration.EventKind{migration.TargetFailed}, states: settling,
	hide: func(m *migration.Migration, e *migration.Event) {
		if m.TargetRuns {
			m.TargetRuns, e.Unrun = false, false
		}
	},
	put: func(before migration.Migration, after *migration.Migration) { after.TargetRuns = before.TargetRuns },
}

// resumesAlways: rollBack does not ask whether the copy was started.
var resumesAlways = guard{
	states: []migration.State{migration.Preparing},
	hide: func(m *migration.Migration, e *migration.Event) {
		m.CopyStarted = e.Kind != migration.TargetPrepared
	},
	put: func(_ migration.Migration, after *migration.Migration) {
		after.CopyStarted = after.State == migration.Copying
	},
}

// resumesGone: rollBack does not ask whether the source has ended.
var resumesGone = guard{
	states: undecided,
	hide:   func(m *migration.Migration, _ *migration.Event) { m.SourceGone = false },
	put: func(before migration.Migration, after *migration.Migration) {
		after.SourceGone = after.SourceGone || before.SourceGone
	},
}

// hurried: settleTimer does not ask whether the forwarding was told to end.
var hurried = released(migration.TimerFired)

// believesRun: settleTimer does not ask whether the target runs.
var believesRun = guard{
	kinds: []migration.EventKind{migration.TimerFired}, states: settling,
	hide: func(m *migration.Migration, _ *migration.Event) { m.TargetRuns = true },
	put:  func(before migration.Migration, after *migration.Migration) { after.TargetRuns = before.TargetRuns },
}

// forgetful does not note that a source has ended.
func forgetful(states ...migration.State) Core {
	return func(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
		next, effects, verdict := migration.Step(m, e)
		if e.Kind == migration.SourceFailed && slices.Contains(states, m.State) {
			next.SourceGone = m.SourceGone
		}
		return next, effects, verdict
	}
}

// keepsCopying: a source that ends in Copying does not begin the switch.
func keepsCopying(before migration.Migration, after *migration.Migration) {
	if before.State == migration.Copying && after.SourceGone {
		after.State, after.Timer = before.State, before.Timer
	}
}

func loseFrames(_ migration.Migration, after *migration.Migration) {
	for i := range after.Pending {
		after.Pending[i].ReturnFrames = false
	}
}

// unfinished: the last deadline does not have the target finish.
func unfinished(before migration.Migration, after *migration.Migration) {
	if before.State == migration.Settling && after.State == migration.Succeeded && after.Timer == nil {
		after.Pending = slices.DeleteFunc(after.Pending, func(e migration.Effect) bool {
			return e.Kind == migration.FinishTarget && e.Sequence > before.Sequence
		})
	}
}

// unreleased: the deadline that ends the forwarding does not have the source released.
func unreleased(before migration.Migration, after *migration.Migration) {
	if after.Released && !before.Released && !before.InGrace {
		after.Pending = slices.DeleteFunc(after.Pending, func(e migration.Effect) bool {
			return e.Kind == migration.ReleaseSource && e.Sequence > before.Sequence
		})
	}
}

// releaseFirst has the target released together with the source's resumption.
func releaseFirst(before migration.Migration, after *migration.Migration) {
	if rollsBack(before, *after) && after.CopyStarted && !after.SourceGone {
		after.Sequence++
		after.Pending = append(after.Pending, migration.Effect{
			Sequence: after.Sequence, Kind: migration.ReleaseTarget, Host: after.Target, ReturnFrames: true,
		})
	}
}

// finishFirst has the target finish together with the source's release.
func finishFirst(before migration.Migration, after *migration.Migration) {
	if after.Released && !before.Released {
		after.Sequence++
		after.Pending = append(after.Pending, migration.Effect{Sequence: after.Sequence, Kind: migration.FinishTarget, Host: after.Target})
	}
}
