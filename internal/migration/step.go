package migration

import (
	"fmt"
	"reflect"
	"slices"
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
	if event.Kind != CopyProgressed || next.State != m.State { // else Progress and Passes tell of it
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

func (m Migration) clone() Migration {
	m.Pending = slices.Clone(m.Pending)
	m.Passes = slices.Clone(m.Passes)
	m.Story = slices.Clone(m.Story)
	m.Foreseen.Forecasts = slices.Clone(m.Foreseen.Forecasts)
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

func (m *Migration) needOperator(event Event, cause string) {
	m.Cause = cause
	m.end(NeedsOperator, event)
}

// nothingMore is to be done: that it was heard is all.
func nothingMore(*Migration, Event) {}

func (m *Migration) causeOf(event Event) string {
	switch event.Kind {
	case TimerFired:
		return m.Timer.What
	case GuestMeasured, CopyProgressed:
		return m.predictedCause()
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
