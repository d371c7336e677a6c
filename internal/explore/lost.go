package explore

import (
	"slices"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// lostMutants are the core without one of its guards for hosts that are declared
// lost, with the fewest faults that show each.
func lostMutants() []Mutant {
	core := func(name string, faults int, c Core) Mutant {
		return Mutant{name, Options{Core: c, Faults: faults, HostsOnly: true, Lost: true}}
	}
	locked := func(name string, faults int, l func(*migration.Migration) bool) Mutant {
		return Mutant{name, Options{Locked: l, Faults: faults, HostsOnly: true, Lost: true}}
	}
	down := func(name string, faults int, d func(*migration.Migration) bool) Mutant {
		return Mutant{name, Options{Down: d, Faults: faults, HostsOnly: true, Lost: true}}
	}
	return []Mutant{
		core("nothing follows from the loss of a host", 1, deafToLoss),
		core("the loss of a host that has no part is heeded", 0, lossOf("other", "tgt")),
		core("the loss of a host is heeded when it is over", 1, reopened),
		core("the source's host is taken for the target's", 1, lossOf("src", "tgt")),
		core("the target's host is taken for the source's", 1, lossOf("tgt", "src")),
		core("a source that is lost in the switch is rolled back at once", 1, as(migration.HostLost, migration.Switching, migration.Preparing)),
		core("a source that is lost is not known to have ended", 1, changed(sourceLives)),
		core("a target that is lost after the commit is as one before", 1, as(migration.HostLost, migration.Settling, migration.Switching)),
		core("a target that is lost after the commit has never run", 1, lostUnrun),
		core("a target that is lost has used its right to run", 1, lostRan),
		core("the VM is lost with a target that has it no more", 1, losesOthers.core),
		core("what a lost host was to do is waited for", 1, changed(awaitsLost)),
		core("what a lost host is to do later is waited for", 1, asksLost.core),
		core("the VM is free though its source may run on", 1, changed(func(_ migration.Migration, after *migration.Migration) {
			after.LostUnheard = false
		})),
		core("a VM is kept for a source that can't run on", 2, changed(func(_ migration.Migration, after *migration.Migration) {
			after.LostUnheard = after.LostUnheard || after.TargetLost
		})),
		core("a source that runs on is not heard once its target is lost", 1, deafAfterLoss),
		locked("a VM is kept for a source whose target is heard of", 2, func(m *migration.Migration) bool {
			return m.Locked() || m.State == migration.NeedsOperator && pending(m, migration.ReleaseSource) > 0 && !m.SourceGone
		}),
		locked("a VM is kept for a source that has answered", 1, func(m *migration.Migration) bool {
			return m.Locked() || m.State == migration.NeedsOperator && m.LostUnheard && !m.SourceGone
		}),
		down("a VM that has no instance any more counts as up", 1, func(m *migration.Migration) bool {
			return m.Down() && (!m.TargetGone || m.TargetLost && m.Owner().Host == m.Target)
		}),
		down("a VM on a lost source counts as up", 1, func(m *migration.Migration) bool {
			return m.Down() && (m.TargetGone || m.Owner().Host != m.Source)
		}),
		down("a VM that has left a lost source counts as down", 1, func(m *migration.Migration) bool { return m.Down() || m.SourceLost }),
		down("a VM that has left a lost target counts as down", 1, func(m *migration.Migration) bool { return m.Down() || m.TargetLost }),
		{"a source that may have run on before it was lost counts as one that has not", Options{Faults: 2, AutoResume: true, Lost: true, Core: lostUnheld.core}},
	}
}

func deafToLoss(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	if e.Kind == migration.HostLost {
		return m, nil, migration.Late
	}
	return migration.Step(m, e)
}

// lossOf takes the loss of one host for that of another.
func lossOf(host, as fleet.HostName) Core {
	return guard{
		kinds: []migration.EventKind{migration.HostLost},
		hide: func(_ *migration.Migration, e *migration.Event) {
			if e.From == string(host) {
				e.From = string(as)
			}
		},
	}.core
}

// reopened: canLose does not ask whether it is over.
func reopened(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	if e.Kind != migration.HostLost || !m.Over() || !m.Involves(fleet.HostName(e.From)) {
		return migration.Step(m, e)
	}
	return m, nil, migration.Act
}

func sourceLives(before migration.Migration, after *migration.Migration) {
	if after.SourceLost && !before.SourceLost {
		after.SourceGone = before.SourceGone
	}
}

// lostUnrun: targetLost does not lose the VM.
func lostUnrun(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	if e.Kind != migration.HostLost || fleet.HostName(e.From) != m.Target || !m.AwaitsTarget() {
		return migration.Step(m, e)
	}
	e.Kind, e.Gone, e.Unrun = migration.TargetFailed, true, true
	next, effects, verdict := migration.Step(m, e)
	next.TargetLost = true
	return next, effects, verdict
}

// lostRan: the right to run counts as used, as what a lost host was to clean up
// counts as done.
func lostRan(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	for _, one := range m.Pending {
		if e.Kind == migration.HostLost && fleet.HostName(e.From) == m.Target && one.Kind == migration.RunTarget {
			ran, _, _ := migration.Step(m, migration.Event{Kind: migration.TargetRunning, At: e.At, From: e.From, Answers: one.Sequence})
			next, _, verdict := migration.Step(ran, e)
			return next, newer(m, next), verdict
		}
	}
	return migration.Step(m, e)
}

// losesOthers: targetLost does not ask whether the VM is the target's.
var losesOthers = guard{
	kinds: []migration.EventKind{migration.HostLost}, states: unresolved,
	hide: func(m *migration.Migration, _ *migration.Event) { m.Committed, m.TakenBack = true, false },
	put: func(before migration.Migration, after *migration.Migration) {
		after.Committed, after.TakenBack = before.Committed, before.TakenBack
	},
}

// awaitsLost: nobody answers for a host when it is lost.
func awaitsLost(before migration.Migration, after *migration.Migration) {
	if before.SourceLost == after.SourceLost && before.TargetLost == after.TargetLost {
		return
	}
	for _, effect := range before.Pending {
		kept := effect.Kind == migration.ReleaseTarget || effect.Kind == migration.ReleaseSource || effect.Kind == migration.FinishTarget
		if kept && !slices.Contains(after.Pending, effect) {
			after.Pending = append(after.Pending, effect)
		}
	}
}

// asksLost: nor later.
var asksLost = guard{
	kinds: slices.DeleteFunc(migration.Events(), func(kind migration.EventKind) bool { return kind == migration.HostLost }),
	hide:  func(m *migration.Migration, _ *migration.Event) { m.SourceLost, m.TargetLost = false, false },
	put: func(before migration.Migration, after *migration.Migration) {
		after.SourceLost, after.TargetLost = before.SourceLost, before.TargetLost
	},
}

func deafAfterLoss(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	if e.Kind == migration.SourceRanOn && m.TargetLost {
		return m, nil, migration.Late
	}
	return migration.Step(m, e)
}

// lostUnheld: nor does the loss of a source ask whether it may have run on.
var lostUnheld = guard{
	kinds: []migration.EventKind{migration.HostLost}, states: undecided,
	hide: trustsUnheld.hide, put: trustsUnheld.put,
}
