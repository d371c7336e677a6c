package explore

import (
	"slices"

	"godwit.dev/godwit/internal/migration"
)

// Mutant is the core, or what is around it, with one guard taken out. Explore
// must find what is wrong with each.
type Mutant struct {
	Name    string
	Options Options
}

// Mutants lists them, with the fewest faults that show each.
func Mutants() []Mutant {
	core := func(name string, faults int, c Core) Mutant {
		return Mutant{name, Options{Core: c, Faults: faults}}
	}
	return append([]Mutant{
		core("the commit is allowed after an abort", 0, as(migration.TargetLoaded, migration.RollingBack, migration.Switching)),
		core("a cancel is allowed after the commit", 0, as(migration.CancelAsked, migration.Settling, migration.Switching)),
		core("a deadline after the commit is taken for one before", 0, as(migration.TimerFired, migration.Settling, migration.Switching)),
		core("a source's failure after the commit rolls back", 0, as(migration.SourceFailed, migration.Settling, migration.Switching)),
		core("answers need not answer what is pending", 0, unasked),
		core("an instance that may have run is taken for one that has not", 1, credulous),
		core("a refusal after the commit is not heard", 0, deaf(migration.TargetRefused, migration.SourceRanOn)),
		core("what is taken back keeps its epoch", 0, changed(sameEpoch)),
		core("the source is retired with the commit, before the target runs", 0, changed(retireEarly)),
		core("the target is left when the source has resumed", 0, changed(leaveTarget)),
		core("the copy's measurement is waited for after the source's end", 0, changed(keepCopy)),
		core("an end has no cause", 0, changed(noCause)),
		core("Preparing has no deadline", 1, changed(timeless(migration.Preparing))),
		core("Copying has no deadline", 1, changed(timeless(migration.Copying))),
		core("Switching has no deadline", 1, changed(timeless(migration.Switching))),
		core("Settling has no deadline", 0, changed(timeless(migration.Settling))),
		core("RollingBack has no deadline", 1, changed(timeless(migration.RollingBack))),
		{"a target gives up that has run", Options{GiveUpAfterRun: true}},
		core("a VM is taken back by a source that has ended", 1, takesGone.core),
		core("a source that ends when it has the VM back is as any", 1, forgetsTaken.core),
		core("a source that ends in the switch is rolled back at once", 1, impatient.core),
		core("the forwarding ends before all hosts have the addresses", 0, hastens.core),
		core("the forwarding ends before the source is retired", 0, overlooks(migration.RetireSource, settling, migration.AddressesKnown).core),
		core("it succeeds before the source is released", 0, overlooks(migration.ReleaseSource, settling, migration.AddressesKnown).core),
		core("it succeeds before the target has finished", 0, overlooks(migration.FinishTarget, settling, migration.AddressesKnown).core),
		core("frames that wait at the target do not return", 0, changed(loseFrames)),
		core("frames return before the source's gate is open", 0, changed(releaseFirst)),
		core("the target closes the tunnel before the source", 0, changed(finishFirst)),
		core("a timer that was set anew counts", 0, oldTimers.core),
		core("the first deadline is the last", 0, hurried.core),
		core("a target that does not say that it runs is believed to", 0, believesRun.core),
		core("at the last deadline the target is left as it is", 0, changed(unfinished)),
		core("at the first deadline the source is left as it is", 0, changed(unreleased)),
		core("the end of a source is forgotten in Settling", 1, forgetful(migration.Settling)),
		core("the end of a source is forgotten in Switching", 1, forgetful(migration.Switching, migration.Copying)),
		core("the end of a source is forgotten in NeedsOperator", 2, forgetful(migration.NeedsOperator)),
		core("a source that fails after the commit is taken for ended", 1, ended(migration.SourceFailed, settling).core),
		core("a source that fails in the roll-back is taken for ended", 1, ended(migration.SourceFailed, rolling).core),
		core("a source that fails in the switch is taken for ended", 1, ended(migration.SourceFailed, undecided).core),
		core("a target that fails after the commit is taken for ended", 1, ended(migration.TargetFailed, settling).core),
		core("a target that ends when it has run is lost", 1, failsRunning.core),
		core("a source is told to go on that was told nothing", 1, resumesAlways.core),
		core("a source is told to go on that has ended", 1, resumesGone.core),
		core("a roll-back that waits for the target needs an operator", 0, imagines(migration.ResumeSource, migration.TimerFired, rolling).core),
		core("a roll-back that waits for the source ends by itself", 0, overlooks(migration.ResumeSource, rolling, migration.TimerFired).core),
		core("a source that ends when it has gone on is awaited", 1, imagines(migration.ResumeSource, migration.SourceFailed, rolling).core),
		core("a return is asked for, and the target runs", 1, anytime(migration.ReturnAsked, settling).core),
		core("a return is asked for, and nothing awaits the target", 1, anytime(migration.ReturnAsked, unresolved).core),
		core("a refusal counts, and nothing awaits the target", 0, anytime(migration.TargetRefused, unresolved).core),
		core("a source that runs on counts, and nothing awaits the target", 0, anytime(migration.SourceRanOn, unresolved).core),
		core("a target's end counts, and nothing awaits the target", 1, anytime(migration.TargetFailed, unresolved).core),
		core("the right to run stays when the VM is taken back", 0, undropped(migration.RunTarget, takesBack)),
		core("the right to run stays when the VM is lost", 1, undropped(migration.RunTarget, loses)),
		core("the resumption stays when the source has ended", 1, undropped(migration.ResumeSource, endsRolling)),
		core("a source that ends in Copying is waited for as a copy", 1, changed(keepsCopying)),
		core("what a source said before it ended is heeded after it", 2, outOfOrder.core),
		core("the end of a source that was to go on needs nothing done", 1, overlooks(migration.ResumeSource, unresolved, migration.SourceFailed).core),
		core("it succeeds when the grace time begins", 0, hasty.core),
		core("the VM is lost with a target that never ran", 1, pessimist),
		{"a VM is free when an operator is needed", Options{Locked: func(m *migration.Migration) bool { return !m.State.Final() }}},
		{"a VM that is lost stays locked", Options{Faults: 1, Locked: func(m *migration.Migration) bool {
			return m.Locked() || m.State == migration.NeedsOperator
		}}},
		{"a source that may run on by itself is not known as one", Options{Faults: 1, AutoResume: true, KnownHeld: true}},
		{"the commit does not wait for a source that may run on by itself", Options{Faults: 1, AutoResume: true, Core: commitsUnheld.core}},
		{"a source that may have run on before it ended counts as one that has not", Options{Faults: 2, AutoResume: true, Core: trustsUnheld.core}},
		core("the copy stays when it is rolled back", 0, undropped(migration.StartCopy, rollsBack)),
		core("the preparation stays when it is rolled back", 0, undropped(migration.PrepareTarget, rollsBack)),
	}, lostMutants()...)
}

// as takes an event in a state as if it were in another.
func as(kind migration.EventKind, in, like migration.State) Core {
	return func(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
		if e.Kind != kind || m.State != in {
			return migration.Step(m, e)
		}
		m.State = like
		return migration.Step(m, e)
	}
}

// deaf does not hear some events once the migration was committed.
func deaf(kinds ...migration.EventKind) Core {
	return func(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
		if m.Committed && slices.Contains(kinds, e.Kind) {
			return m, nil, migration.Late
		}
		return migration.Step(m, e)
	}
}

// unasked takes the answers of a source that resumed whenever they come.
func unasked(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	if e.Kind == migration.TargetPrepared || e.Kind == migration.SourceRetired || e.Kind == migration.TargetReleased {
		for _, effect := range m.Pending {
			e.Answers = max(e.Answers, effect.Sequence)
		}
		m.Pending = slices.Clone(m.Pending)
		for i := range m.Pending {
			if m.Pending[i].Sequence == e.Answers {
				m.Pending[i].Kind = map[migration.EventKind]migration.EffectKind{
					migration.TargetPrepared: migration.PrepareTarget, migration.SourceRetired: migration.RetireSource,
					migration.TargetReleased: migration.ReleaseTarget,
				}[e.Kind]
			}
		}
	}
	return migration.Step(m, e)
}

func credulous(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	e.Unrun = e.Gone
	return migration.Step(m, e)
}

func pessimist(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
	e.Unrun = false
	return migration.Step(m, e)
}

// changed is Step with something done to what it gives.
func changed(change func(before migration.Migration, after *migration.Migration)) Core {
	return func(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
		next, _, verdict := migration.Step(m, e)
		if verdict != migration.Act {
			return next, nil, verdict
		}
		next.Pending = slices.Clone(next.Pending)
		change(m, &next)
		return next, newer(m, next), verdict
	}
}

func timeless(state migration.State) func(migration.Migration, *migration.Migration) {
	return func(_ migration.Migration, after *migration.Migration) {
		if after.State == state {
			after.Timer = nil
		}
	}
}

func sameEpoch(_ migration.Migration, after *migration.Migration) {
	for i := range after.Pending {
		after.Pending[i].Epoch = 0
	}
}

func retireEarly(before migration.Migration, after *migration.Migration) {
	if after.Committed && !before.Committed {
		after.Sequence++
		after.Pending = append(after.Pending, migration.Effect{Sequence: after.Sequence, Kind: migration.RetireSource, Host: after.Source})
	}
}

func leaveTarget(_ migration.Migration, after *migration.Migration) {
	if after.State == migration.RollingBack && after.CopyStarted {
		after.Pending = slices.DeleteFunc(after.Pending, func(e migration.Effect) bool { return e.Kind == migration.ReleaseTarget })
		if len(after.Pending) == 0 {
			after.State, after.Timer = migration.Aborted, nil
		}
	}
}

func keepCopy(before migration.Migration, after *migration.Migration) {
	kept := func(m *migration.Migration) int {
		return slices.IndexFunc(m.Pending, func(e migration.Effect) bool { return e.Kind == migration.StartCopy })
	}
	if at := kept(&before); at >= 0 && kept(after) < 0 && after.SourceMarks == nil && after.TargetRuns {
		after.Pending = append(after.Pending, before.Pending[at])
	}
}

func noCause(_ migration.Migration, after *migration.Migration) {
	if after.State == migration.Aborted {
		after.Cause = ""
	}
}
