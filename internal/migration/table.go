package migration

// Verdict says what becomes of an event in a state.
type Verdict string

// The verdicts. Everything but Act leaves the migration as it was.
const (
	// Act: the migration changes.
	Act Verdict = "act"
	// Late: a repeat, or overtaken by something newer; nothing to do.
	Late Verdict = "late"
	// Refuse: the asker is told no, and why.
	Refuse Verdict = "refuse"
	// Broken: no correct agent or server can send it here.
	Broken Verdict = "broken"
)

// cell is what a state does with an event.
type cell struct {
	verdict Verdict
	apply   func(*Migration, Event) // with Act only
	// when, if set, is what an Act needs beside the state; otherwise is the
	// verdict without it.
	when      func(*Migration, Event) bool
	otherwise Verdict
}

var (
	late   = cell{verdict: Late}
	refuse = cell{verdict: Refuse}
	broken = cell{verdict: Broken}

	// measured is Late once the copy does not wait for it any more.
	measured = act(guestMeasured).given(func(m *Migration) bool { return m.Foreseen.Awaited }, Late)
)

func act(apply func(*Migration, Event)) cell { return cell{verdict: Act, apply: apply} }

// given makes an Act depend on more than the state.
func (c cell) given(holds func(*Migration) bool, otherwise Verdict) cell {
	c.when = func(m *Migration, _ Event) bool { return holds(m) }
	c.otherwise = otherwise
	return c
}

// ifAwaited makes an Act depend on that the target has the right to run, and
// nobody knows that it ever did.
func (c cell) ifAwaited(otherwise Verdict) cell {
	return c.given((*Migration).AwaitsTarget, otherwise)
}

// ifMayRunOn is the same for the word of a source whose target has given up, which
// may come after the target was lost.
func (c cell) ifMayRunOn(otherwise Verdict) cell {
	return c.given(func(m *Migration) bool { return m.AwaitsTarget() || m.SourceMayRunOn() }, otherwise)
}

// unlessAsked makes the question for the commit Late that was asked before.
func (c cell) unlessAsked() cell {
	return c.given(func(m *Migration) bool { return !m.AwaitsSource() }, Late)
}

// unlessCompared makes the target's machine Late that was compared before, or that
// there is nothing to compare with.
func (c cell) unlessCompared() cell { return c.given((*Migration).awaitsComparison, Late) }

// table decides every event in every state. An answer (see the map answers)
// whose effect is not pending is Late before the table is asked, so "broken"
// in an answer's column says that its effect can't be pending in that state.
var table = map[State]map[EventKind]cell{
	Planned: {
		Started: act(start), CancelAsked: act(abortPlan), TimerFired: act(abortPlan), GuestMeasured: measured,
		SourceFailed: act(abortPlan), TargetFailed: broken,
		CopyProgressed: broken, SourceStopped: broken, TargetLoaded: refuse, AddressesKnown: late,
		TargetRefused: broken, SourceRanOn: broken, ReturnAsked: refuse,
		HostLost:       lost(abortPlan, abortPlan),
		TargetPrepared: broken, SwitchMeasured: broken, TargetRunning: broken, SourceRetired: broken,
		SourceReleased: broken, TargetFinished: broken, SourceResumed: broken, TargetReleased: broken,
		TargetCompared: broken,
	},
	Preparing: {
		Started: late, CancelAsked: act(rollBack), TimerFired: act(rollBack), GuestMeasured: measured,
		SourceFailed: act(rollBack), TargetFailed: act(rollBack),
		CopyProgressed: broken, SourceStopped: broken, TargetLoaded: refuse, AddressesKnown: late,
		TargetRefused: broken, SourceRanOn: broken, ReturnAsked: refuse,
		HostLost:       lost(rollBack, rollBack),
		TargetPrepared: act(targetPrepared), SwitchMeasured: broken, TargetRunning: broken, SourceRetired: broken,
		SourceReleased: broken, TargetFinished: broken, SourceResumed: broken, TargetReleased: broken,
		TargetCompared: broken,
	},
	Copying: {
		Started: late, CancelAsked: act(rollBack), TimerFired: act(copyExhausted), GuestMeasured: late,
		SourceFailed: act(sourceFailedInCopy), TargetFailed: act(rollBack),
		CopyProgressed: act(noteProgress), SourceStopped: act(switchOver), TargetLoaded: act(askCommit), AddressesKnown: late,
		TargetRefused: act(rollBack), SourceRanOn: act(rollBack), ReturnAsked: refuse,
		HostLost:       lost(sourceFailedInCopy, rollBack),
		TargetPrepared: broken, SwitchMeasured: act(switchMeasured), TargetRunning: broken, SourceRetired: broken,
		SourceReleased: broken, TargetFinished: broken, SourceResumed: broken, TargetReleased: broken,
		TargetCompared: broken,
	},
	Switching: {
		Started: late, CancelAsked: act(rollBack), TimerFired: act(rollBack), GuestMeasured: late,
		SourceFailed: act(sourceFailedInSwitch), TargetFailed: act(rollBack),
		CopyProgressed: act(noteProgress), SourceStopped: late, TargetLoaded: act(askCommit).unlessAsked(), AddressesKnown: late,
		TargetRefused: act(rollBack), SourceRanOn: act(rollBack), ReturnAsked: refuse,
		HostLost:       lost(sourceFailedInSwitch, rollBack),
		TargetPrepared: broken, SwitchMeasured: act(switchMeasured), TargetRunning: broken, SourceRetired: broken,
		SourceReleased: broken, TargetFinished: broken, SourceResumed: broken, TargetReleased: broken,
		TargetCompared: broken,
	},
	Settling: {
		Started: late, CancelAsked: refuse, TimerFired: act(settleTimer), GuestMeasured: late,
		SourceFailed: act(noteSourceGone), TargetFailed: act(targetFailedAfterCommit),
		CopyProgressed: late, SourceStopped: late, TargetLoaded: late, AddressesKnown: act(addressesKnown),
		TargetRefused: act(takeBack).ifAwaited(Broken), SourceRanOn: act(takeBack).ifAwaited(Broken),
		ReturnAsked:    act(takeBack).ifAwaited(Refuse),
		HostLost:       lost(noteSourceGone, targetLost),
		TargetPrepared: broken, SwitchMeasured: act(noteSwitch), TargetRunning: act(targetRuns), SourceRetired: act(settle),
		SourceReleased: act(sourceReleased), TargetFinished: act(settle), SourceResumed: broken, TargetReleased: broken,
		TargetCompared: act(noteCompared).unlessCompared(),
	},
	RollingBack: {
		Started: late, CancelAsked: late, TimerFired: act(rollbackTimer), GuestMeasured: late,
		SourceFailed: act(sourceFailedInRollback), TargetFailed: late,
		CopyProgressed: late, SourceStopped: late, TargetLoaded: refuse, AddressesKnown: late,
		TargetRefused: late, SourceRanOn: late, ReturnAsked: late,
		HostLost:       lost(sourceFailedInRollback, nothingMore),
		TargetPrepared: broken, SwitchMeasured: broken, TargetRunning: broken, SourceRetired: broken,
		SourceReleased: broken, TargetFinished: broken, SourceResumed: act(releaseTarget), TargetReleased: act(finishRollback),
		TargetCompared: late,
	},
	Succeeded: {
		Started: late, CancelAsked: refuse, TimerFired: late, GuestMeasured: late,
		SourceFailed: act(noteSourceGone), TargetFailed: late,
		CopyProgressed: late, SourceStopped: late, TargetLoaded: late, AddressesKnown: late,
		TargetRefused: broken, SourceRanOn: broken, ReturnAsked: refuse,
		HostLost:       lost(noteSourceGone, nothingMore),
		TargetPrepared: broken, SwitchMeasured: act(noteSwitch), TargetRunning: broken, SourceRetired: act(nothingMore),
		SourceReleased: act(nothingMore), TargetFinished: act(nothingMore), SourceResumed: broken, TargetReleased: broken,
		TargetCompared: act(noteCompared).unlessCompared(),
	},
	Aborted: {
		Started: late, CancelAsked: refuse, TimerFired: late, GuestMeasured: late,
		SourceFailed: late, TargetFailed: late,
		CopyProgressed: late, SourceStopped: late, TargetLoaded: refuse, AddressesKnown: late,
		TargetRefused: late, SourceRanOn: late, ReturnAsked: refuse,
		HostLost:       lost(nothingMore, nothingMore),
		TargetPrepared: broken, SwitchMeasured: broken, TargetRunning: broken, SourceRetired: broken,
		SourceReleased: broken, TargetFinished: broken, SourceResumed: broken, TargetReleased: act(noteReturned),
		TargetCompared: late,
	},
	NeedsOperator: {
		Started: late, CancelAsked: refuse, TimerFired: late, GuestMeasured: late,
		SourceFailed: act(sourceFailedUnresolved), TargetFailed: act(targetFailedAfterCommit).ifAwaited(Late),
		CopyProgressed: late, SourceStopped: late, TargetLoaded: refuse, AddressesKnown: late,
		TargetRefused: act(takeBack).ifAwaited(Late), SourceRanOn: act(takeBack).ifMayRunOn(Late),
		ReturnAsked:    act(takeBack).ifAwaited(Refuse),
		HostLost:       lost(sourceFailedUnresolved, targetLost),
		TargetPrepared: broken, SwitchMeasured: act(noteSwitch), TargetRunning: act(targetRuns), SourceRetired: broken,
		SourceReleased: act(nothingMore), TargetFinished: broken, SourceResumed: act(releaseTarget), TargetReleased: act(noteReturned),
		TargetCompared: act(noteCompared).unlessCompared(),
	},
}
