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
	return []Mutant{
		core("the commit is allowed after an abort", 0, as(migration.TargetLoaded, migration.RollingBack, migration.Switching)),
		core("a cancel is allowed after the commit", 0, as(migration.CancelAsked, migration.Settling, migration.Switching)),
		core("a deadline after the commit is taken for one before", 0, as(migration.TimerFired, migration.Settling, migration.Switching)),
		core("a source's failure after the commit rolls back", 1, as(migration.SourceFailed, migration.Settling, migration.Switching)),
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
		core("Settling has no deadline", 1, changed(timeless(migration.Settling))),
		core("RollingBack has no deadline", 1, changed(timeless(migration.RollingBack))),
		{"a target gives up that has run", Options{GiveUpAfterRun: true}},
	}
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

// changed is Step with something done to what it gives.
func changed(change func(before migration.Migration, after *migration.Migration)) Core {
	return func(m migration.Migration, e migration.Event) (migration.Migration, []migration.Effect, migration.Verdict) {
		next, _, verdict := migration.Step(m, e)
		if verdict != migration.Act {
			return next, nil, verdict
		}
		next.Pending = slices.Clone(next.Pending)
		change(m, &next)
		var effects []migration.Effect
		for _, effect := range next.Pending {
			if effect.Sequence > m.Sequence {
				effects = append(effects, effect)
			}
		}
		return next, effects, verdict
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
