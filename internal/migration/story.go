package migration

import (
	"slices"
	"time"
)

// Entry is one line of a migration's story: what happened, and what it led to.
// Its time is the server's.
type Entry struct {
	At     time.Time `json:"at"`
	From   string    `json:"from"`
	Event  EventKind `json:"event"`
	State  State     `json:"state"`            // after the event
	Detail string    `json:"detail,omitempty"` // of TimerFired: what the timer was for
	Gone   bool      `json:"gone,omitempty"`   // the instance at From has ended

	Answers   uint64   `json:"answers,omitempty"`   // the sequence of the effect that From speaks of
	Ordered   []Effect `json:"ordered,omitempty"`   // the effects that the event led to
	Withdrawn []uint64 `json:"withdrawn,omitempty"` // those whose answers nobody waits for any more
	Timer     *Timer   `json:"timer,omitempty"`     // if the event set it
}

// leads reports whether the event led to anything but its own line.
func (e Entry) leads(before State) bool {
	return e.State != before || len(e.Ordered) > 0 || len(e.Withdrawn) > 0
}

// toldOf reports whether the story has the same failure already, or no room for
// it.
func (m *Migration) toldOf(event Event) bool {
	if event.Kind != SourceFailed && event.Kind != TargetFailed {
		return false
	}
	return len(m.Story) >= maxStory || slices.ContainsFunc(m.Story, func(e Entry) bool {
		return e.Event == event.Kind && e.From == event.From && e.Answers == event.Answers && e.Detail == event.Detail && e.Gone == event.Gone
	})
}

// maxStory bounds the lines of a story that led to nothing. The others are few
// by themselves, and without them nobody could tell how it ended.
const maxStory = 200

// tell adds the step from before by an event to the story.
func (m *Migration) tell(before Migration, event Event) {
	entry := Entry{
		At: event.At, From: event.From, Event: event.Kind, State: m.State, Detail: event.Detail, Gone: event.Gone,
		Answers: event.Answers, Ordered: slices.Clone(m.Pending[m.firstSince(before.Sequence):]),
	}
	for _, effect := range before.Pending {
		if effect.Sequence != event.Answers && !m.expects(effect.Kind, effect.Sequence) {
			entry.Withdrawn = append(entry.Withdrawn, effect.Sequence)
		}
	}
	if m.Timer != nil && (before.Timer == nil || *m.Timer != *before.Timer) {
		entry.Timer = new(*m.Timer)
	}
	if event.Kind == TimerFired {
		entry.Detail = before.Timer.What
	}
	if len(m.Story) < maxStory || entry.leads(before.State) {
		m.Story = append(m.Story, entry)
	}
}
