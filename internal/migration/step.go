package migration

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Step decides what an event does to a migration. It gives the changed
// migration, the effects that the change added to Pending, and the verdict; m
// itself is never changed. Unless the verdict is Act, nothing is to be saved.
func Step(m Migration, event Event) (Migration, []Effect, Verdict) {
	decided, known := table[m.State][event.Kind]
	if !known {
		return m, nil, Broken
	}
	kind, isAnswer := answers[event.Kind]
	if isAnswer && !m.expects(kind, event.Answers) {
		return m, nil, Late
	}
	if event.Kind == TimerFired && (m.Timer == nil || !event.Due.Equal(m.Timer.At)) {
		return m, nil, Late // a timer that was set anew since
	}
	if decided.when != nil && !decided.when(&m, event) {
		return m, nil, decided.otherwise
	}
	if decided.verdict != Act {
		return m, nil, decided.verdict
	}
	next := m.clone()
	if isAnswer {
		next.drop(kind)
	}
	decided.apply(&next, event)
	next.answerForLost(event)
	next.Remedies = next.remedies()
	if m.toldOf(event) && reflect.DeepEqual(m, next) {
		return m, nil, Late // an order that is given again fails again
	}
	if next.State != m.State || next.Closed() {
		next.Exported = time.Time{} // what was exported is not the end
	}
	if event.Kind != CopyProgressed { // Progress and Passes tell of it
		next.tell(m, event)
	}
	return next, next.Pending[next.firstSince(m.Sequence):], Act
}

// Refusal says, for the asker, why a state refuses an event.
func Refusal(m Migration, event Event) error {
	refusal := &fleet.Error{Code: fleet.Conflict, Op: string(event.Kind), Subject: "migration " + string(m.ID)}
	switch {
	case event.Kind == TargetLoaded:
		refusal.Op = "commit"
		refusal.Cause = fmt.Sprintf("it is %s: the target has no right to run", m.State)
		if m.Committed {
			refusal.Cause = fmt.Sprintf("it is %s: it was committed before, and is not again", m.State)
		}
	case event.Kind == ReturnAsked:
		refusal.Op = "return"
		refusal.Cause = fmt.Sprintf("it is %s, and %s is not waited for: there is nothing to take back", m.State, m.Target)
	case m.Committed && !m.State.Final():
		refusal.Op = "cancel"
		refusal.Cause = fmt.Sprintf("it has committed: %s belongs to %s", m.VM, m.Target)
		refusal.Hint = fmt.Sprintf("to have it back, run: godwit migrate %s --to %s", m.VM, m.Source)
	default:
		refusal.Op = "cancel"
		refusal.Cause = fmt.Sprintf("it has ended already: %s", m.State)
	}
	return refusal
}

func (m *Migration) expects(kind EffectKind, sequence uint64) bool {
	return slices.ContainsFunc(m.Pending, func(effect Effect) bool {
		return effect.Kind == kind && effect.Sequence == sequence
	})
}

// firstSince gives the index of the first pending effect newer than sequence.
func (m *Migration) firstSince(sequence uint64) int {
	newer := func(effect Effect) bool { return effect.Sequence > sequence }
	if first := slices.IndexFunc(m.Pending, newer); first >= 0 {
		return first
	}
	return len(m.Pending)
}

func (m Migration) clone() Migration {
	m.Pending = slices.Clone(m.Pending)
	m.Passes = slices.Clone(m.Passes)
	m.Story = slices.Clone(m.Story)
	m.SourceMarks = clonePointer(m.SourceMarks)
	m.TargetMarks = clonePointer(m.TargetMarks)
	m.Timer = clonePointer(m.Timer)
	return m
}

func clonePointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	return new(*p)
}

// end closes the record in a final state.
func (m *Migration) end(state State, event Event) {
	m.State = state
	m.Ended = event.At
	m.Timer = nil
}

func start(m *Migration, event Event) {
	m.State = Preparing
	m.want(PrepareTarget, m.Target)
	m.setTimer(event.At, m.Policy.PrepareMax, "the target was not prepared in time")
}

func abortPlan(m *Migration, event Event) {
	m.Cause = m.causeOf(event)
	m.end(Aborted, event)
}

func copyMemory(m *Migration, event Event) {
	m.State = Copying
	m.Port, m.TargetQEMU = event.Port, event.QEMU
	m.CopyStarted = true
	m.want(StartCopy, m.Source)
	m.setTimer(event.At, m.Policy.CopyMax, "the copy did not converge in time")
}

func noteProgress(m *Migration, event Event) {
	m.Progress = event.Progress
	m.Progress.Heard = event.At
	if event.Progress.PassBegins && len(m.Passes) < maxPasses {
		m.Passes = append(m.Passes, Pass{
			Number: event.Progress.Pass, At: event.Progress.At,
			Sent: event.Progress.Sent, Remaining: event.Progress.Remaining,
		})
	}
}

func switchOver(m *Migration, event Event) {
	m.State = Switching
	m.setTimer(event.At, m.Policy.SwitchMax, "the switch was not committed in time")
}

// switchMeasured: the source's QEMU has sent everything. In Copying the word that
// it stopped was lost, but this one says it too.
func switchMeasured(m *Migration, event Event) {
	if m.State == Copying {
		switchOver(m, event)
	}
	noteSwitch(m, event)
	m.SourceSent = m.Unheld // else nobody asks
	if m.TargetAsked {
		commit(m, event)
	}
}

func noteSwitch(m *Migration, event Event) {
	m.SourceMarks = new(event.Source)
}

// askCommit: the target has loaded everything. In Copying the word that the source
// stopped has not come, and may never come; but no target has loaded everything
// before its source was stopped behind a closed gate. What keeps it stopped is its
// agent or, if that may not be so, only that its QEMU knows of the load.
func askCommit(m *Migration, event Event) {
	if !m.Unheld || m.SourceSent {
		commit(m, event)
		return
	}
	m.TargetAsked = true
	if m.State == Copying {
		switchOver(m, event)
	}
}

// commit makes the target the owner.
func commit(m *Migration, event Event) {
	m.State = Settling
	m.Committed = true
	m.want(RunTarget, m.Target)
	m.setTimer(event.At, m.Policy.SettleMax, "the target did not run in time")
}

func targetRuns(m *Migration, event Event) {
	m.State, m.Ended = Settling, time.Time{}
	m.TargetRuns = true
	m.TargetMarks = new(event.Target)
	m.Cause = ""
	m.want(RetireSource, m.Source)
	m.setTimer(event.At, m.Policy.SettleMax, "the source or another host did not answer in time")
	settle(m, event)
}

func addressesKnown(m *Migration, event Event) {
	if !m.AddressesKnown { // once known is enough
		m.AddressesKnown = true
		m.Unaware = cmp.Or(m.Unaware, event.Detail)
	}
	settle(m, event)
}

// settle moves on when the last thing that Settling waited for has come: first
// to the grace time, then to the end.
func settle(m *Migration, event Event) {
	switch {
	case m.isPending(RetireSource) || m.isPending(ReleaseSource) || m.isPending(FinishTarget):
	case m.Released:
		m.succeed(event)
	case m.TargetRuns && m.AddressesKnown && !m.InGrace:
		m.InGrace = true
		m.setTimer(event.At, m.Policy.Grace, "the grace time is over")
	}
}

// settleTimer ends the forwarding first, also if not all have answered, and gives
// that a time of its own.
func settleTimer(m *Migration, event Event) {
	switch {
	case !m.TargetRuns:
		m.needOperator(event, fmt.Sprintf("%s has committed to %s, which does not say that it runs it: %s", m.VM, m.Target, cmp.Or(m.Cause, m.Timer.What)))
	case !m.Released:
		m.release()
		m.setTimer(event.At, m.Policy.SettleMax, "a host did not clean up in time")
	default:
		m.succeed(event)
		if m.isPending(ReleaseSource) {
			m.want(FinishTarget, m.Target) // no longer after the source
		}
	}
}

// succeed ends it; its cause is what is not done by then.
func (m *Migration) succeed(event Event) {
	if !m.AddressesKnown {
		m.Unaware = unaware
	}
	m.Cause = sentences(m.Cause, m.Unaware, m.leftovers())
	m.end(Succeeded, event)
}

const unaware = "not every host has said in time that it knows the new address"

// sentences joins those that say something.
func sentences(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), "; ")
}

// release ends the forwarding. The target closes its end of the tunnel only
// when the source has: senders on the source's own host use it to the last.
func (m *Migration) release() {
	m.Released = true
	m.want(ReleaseSource, m.Source)
}

func sourceReleased(m *Migration, event Event) {
	if !m.AddressesKnown { // what they hear later is too late
		m.Unaware = unaware
	}
	m.want(FinishTarget, m.Target)
	m.setTimer(event.At, m.Policy.SettleMax, "the target did not clean up in time")
}

// leftovers says which hosts still have something to clean up, if any has. StartCopy
// waits for a measurement only.
func (m *Migration) leftovers() string {
	var hosts []string
	for _, effect := range m.Pending {
		if effect.Kind != StartCopy && !slices.Contains(hosts, string(effect.Host)) {
			hosts = append(hosts, string(effect.Host))
		}
	}
	if len(hosts) == 0 {
		return ""
	}
	return strings.Join(hosts, " and ") + " did not answer in time and will clean up on return"
}

// noteSourceGone: what it has not measured by then nobody will.
func noteSourceGone(m *Migration, event Event) {
	if event.Gone {
		m.SourceGone = true
		m.drop(StartCopy)
	}
}

func targetFailedAfterCommit(m *Migration, event Event) {
	m.Cause = event.Detail
	switch {
	case !event.Gone:
	case m.TargetRuns: // then the VM has ended, as any may; what is left to do is the same
	case event.Unrun && m.AwaitsTarget():
		takeBack(m, event)
	default:
		m.lose(event, fmt.Sprintf("the instance on %s ended after the commit: %s", m.Target, event.Detail))
	}
}

// lose: the VM has no instance any more. What the source has is older than what
// the target may have done, so it must not run on.
func (m *Migration) lose(event Event, cause string) {
	m.drop(RunTarget, StartCopy, RetireSource, FinishTarget)
	m.TargetGone = true
	m.want(ReleaseTarget, m.Target)
	if !m.Released {
		m.want(ReleaseSource, m.Source)
	}
	m.needOperator(event, cause)
}

// takeBack gives the VM to the source again, which has all of it: the target
// has the right to run, but never ran and never will. Beside commit it is the
// only place that changes the owner.
func takeBack(m *Migration, event Event) {
	if m.SourceGone {
		m.lose(event, m.causeOf(event)+"; and the source has ended")
		return
	}
	m.drop(RunTarget, ReleaseSource)
	m.TakenBack, m.TargetGone, m.Ended = true, false, time.Time{}
	rollBack(m, event)
	m.Cause = fmt.Sprintf("after the commit, before %s ran: %s", m.Target, m.Cause)
}

// sourceFailedInCopy: the word that it had stopped may not have come, so what
// holds for the switch holds here.
func sourceFailedInCopy(m *Migration, event Event) {
	if event.Gone {
		switchOver(m, event)
	}
	sourceFailedInSwitch(m, event)
}

// sourceFailedInSwitch: a source that died in the switch may have sent
// everything before, and then the target is the VM's only hope. A target that
// has not got everything fails by itself. But one that nobody held may have run on
// before it died, and have written to the disks what the target does not know.
// What the source said before it died may come after that, and changes nothing.
func sourceFailedInSwitch(m *Migration, event Event) {
	switch {
	case event.Gone && m.Unheld && !m.SourceSent:
		rollBack(m, event)
	case event.Gone:
		m.SourceGone = true
		m.Cause = m.causeOf(event)
		m.drop(StartCopy)
	case !m.SourceGone:
		rollBack(m, event)
	}
}

// rollBack undoes the migration. The source opens its gate first, so that the
// frames which the target then returns find it open.
func rollBack(m *Migration, event Event) {
	cause := m.causeOf(event)
	if m.SourceGone && m.Cause != "" { // which everything else follows from
		cause = m.Cause + "; " + cause
	}
	m.Cause = cause
	m.SourceGone = m.SourceGone || event.Kind == SourceFailed && event.Gone
	m.State = RollingBack
	m.drop(PrepareTarget, StartCopy)
	if m.CopyStarted && !m.SourceGone {
		resume := m.want(ResumeSource, m.Source)
		if m.TakenBack {
			resume.Epoch = m.Owner().Epoch
		}
	} else {
		m.want(ReleaseTarget, m.Target)
	}
	m.setTimer(event.At, m.Policy.RollbackMax, "the roll-back did not end in time")
}

func releaseTarget(m *Migration, event Event) {
	m.State, m.Ended = RollingBack, time.Time{}
	effect := m.want(ReleaseTarget, m.Target)
	effect.ReturnFrames = !m.SourceGone
	m.setTimer(event.At, m.Policy.RollbackMax, "the target did not clean up in time")
}

func sourceFailedInRollback(m *Migration, event Event) {
	if !event.Gone || !m.isPending(ResumeSource) {
		return
	}
	m.SourceGone = true
	m.drop(ResumeSource)
	if m.TakenBack { // from a target that never ran: now nobody has it
		m.lose(event, m.Cause+"; "+m.causeOf(event))
		return
	}
	releaseTarget(m, event)
}

// sourceFailedUnresolved: it may be waited for, or the target.
func sourceFailedUnresolved(m *Migration, event Event) {
	noteSourceGone(m, event)
	sourceFailedInRollback(m, event)
}

func finishRollback(m *Migration, event Event) {
	noteReturned(m, event)
	m.end(Aborted, event)
}

func noteReturned(m *Migration, event Event) {
	m.FramesReturned, m.ReturnError = event.Frames, event.Detail
}

func rollbackTimer(m *Migration, event Event) {
	if m.isPending(ResumeSource) {
		m.needOperator(event, fmt.Sprintf("%s; and %s does not answer, where %s waits to go on", m.Cause, m.Source, m.VM))
		return
	}
	m.Cause += "; " + m.leftovers()
	m.end(Aborted, event)
}

func (m *Migration) needOperator(event Event, cause string) {
	m.Cause = cause
	m.end(NeedsOperator, event)
}

// note has nothing to do: that the answer came is all.
func note(*Migration, Event) {}

func (m *Migration) causeOf(event Event) string {
	switch event.Kind {
	case TimerFired:
		return m.Timer.What
	case CancelAsked:
		return fmt.Sprintf("cancelled by %s: %s", event.From, event.Detail)
	case ReturnAsked:
		return fmt.Sprintf("returned by %s: %s", event.From, event.Detail)
	case TargetRefused:
		return fmt.Sprintf("%s gave it up: %s", event.From, event.Detail)
	case SourceRanOn:
		return fmt.Sprintf("%s runs on: %s", event.From, event.Detail)
	case SourceFailed, TargetFailed:
		return fmt.Sprintf("%s: %s", event.From, event.Detail)
	default:
		return string(event.Kind)
	}
}
