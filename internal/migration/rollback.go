package migration

import (
	"fmt"
	"time"
)

// takeBack gives the VM to the source again, which has all of it: the target
// has the right to run, but never ran and never will. Beside commit it is the
// only place that changes the owner.
func takeBack(m *Migration, event Event) {
	if m.SourceGone {
		m.lose(event, m.causeOf(event)+"; and the source has ended")
		return
	}
	m.drop(RunTarget, ReleaseSource)
	m.TakenBack, m.TargetGone, m.ImageWait, m.Ended = true, false, nil, time.Time{}
	rollBack(m, event)
	m.Cause = fmt.Sprintf("after the commit, before %s ran: %s", m.Target, m.Cause)
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
