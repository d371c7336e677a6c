package migration

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"
)

// checkStory demands that the story tells a step, and nothing that was none.
func checkStory(t *testing.T, before, after Migration, event Event, effects []Effect) {
	t.Helper()
	lines := after.Story[len(before.Story):]
	acted := after.State != before.State || after.Sequence != before.Sequence || !slices.Equal(after.Pending, before.Pending)
	switch {
	case len(lines) == 0 && !acted:
		return
	case len(lines) != 1:
		t.Fatalf("%s in %s has %d lines", event.Kind, before.State, len(lines))
	}
	line := lines[0]
	if line.Event != event.Kind || line.From != event.From || !line.At.Equal(event.At) || line.State != after.State || line.Answers != event.Answers {
		t.Errorf("%s in %s is told as %+v", event.Kind, before.State, line)
	}
	if !slices.Equal(line.Ordered, effects) {
		t.Errorf("%s in %s ordered %v, the story says %v", event.Kind, before.State, effects, line.Ordered)
	}
	// What was pending is answered, withdrawn, or pending still.
	for _, effect := range before.Pending {
		ways := 0
		for _, way := range []bool{effect.Sequence == event.Answers, slices.Contains(line.Withdrawn, effect.Sequence), after.expects(effect.Kind, effect.Sequence)} {
			if way {
				ways++
			}
		}
		if ways != 1 {
			t.Errorf("%s in %s: order %d is answered, withdrawn or pending in %d ways", event.Kind, before.State, effect.Sequence, ways)
		}
	}
}

func TestStoryTellsTimers(t *testing.T) {
	m, _ := mustStep(t, newMigration(), Started)
	set := m.Story[0].Timer
	if set == nil || set.What != "the target was not prepared in time" || !set.At.Equal(epochZero.Add(time.Minute)) {
		t.Fatalf("started set the timer %+v", set)
	}
	m, _ = mustStep(t, m, TimerFired)
	if fired := m.Story[1]; fired.Detail != set.What || fired.Timer == nil {
		t.Errorf("the timer fired as %+v", fired)
	}
	m, _ = mustStep(t, m, TargetReleased)
	if last := m.Story[2]; last.Timer != nil || last.State != Aborted {
		t.Errorf("the end is %+v", last)
	}
}

// However often a host fails, the story tells the end.
func TestStoryKeepsRoomForTheEnd(t *testing.T) {
	m := sample(t, Settling)
	for i := range 2 * maxStory {
		m, _, _ = Step(m, Event{Kind: TargetFailed, From: string(m.Target), At: epochZero, Detail: fmt.Sprintf("for the %d. time", i)})
	}
	if len(m.Story) != maxStory {
		t.Fatalf("%d lines", len(m.Story))
	}
	m, _ = mustStep(t, m, TimerFired)
	if last := m.Story[len(m.Story)-1]; last.State != NeedsOperator {
		t.Errorf("the last line is %+v", last)
	}
}

func TestPolicyValues(t *testing.T) {
	policy := DefaultPolicy(0)
	policy.Asked = append(policy.Asked, PolicyCopy, PolicyBandwidth)
	for _, value := range policy.Values() {
		if want := value.Name == PolicyCopy || value.Name == PolicyBandwidth; (value.From == "the request") != want {
			t.Errorf("%s is from %q", value.Name, value.From)
		}
		if value.Time == 0 && value.Text == "" && value.Name != PolicyBandwidth {
			t.Errorf("%s has no value", value.Name)
		}
	}
	policy.Asked = nil // as in a record of before it was kept
	for _, value := range policy.Values() {
		if value.From != "" {
			t.Errorf("%s is from %q, which nobody knows", value.Name, value.From)
		}
	}
}

// What fails again in the same way, however often, is told once: nothing is to
// be saved for it.
func TestStoryTellsAFailureOnce(t *testing.T) {
	for _, state := range []State{Settling, Succeeded, NeedsOperator} {
		m := sample(t, state)
		fails := Event{Kind: SourceFailed, From: string(m.Source), At: epochZero, Answers: 7, Detail: "a tap is busy"}
		first, _, verdict := Step(m, fails)
		if verdict != Act || len(first.Story) != len(m.Story)+1 {
			t.Fatalf("%s: the first failure is %s, and told in %d lines", state, verdict, len(first.Story)-len(m.Story))
		}
		again, effects, verdict := Step(first, fails)
		if verdict != Late || len(effects) > 0 || !reflect.DeepEqual(again, first) {
			t.Errorf("%s: the same again is %s", state, verdict)
		}
		for name, change := range map[string]func(*Event){
			"another cause": func(e *Event) { e.Detail = "a bridge is gone" },
			"another order": func(e *Event) { e.Answers++ },
			"the end":       func(e *Event) { e.Gone = true },
		} {
			other := fails
			change(&other)
			if _, _, verdict := Step(first, other); verdict != Act {
				t.Errorf("%s: %s is %s", state, name, verdict)
			}
		}
	}
}

// A record is exported as it ended, and again when that has changed.
func TestTheEndIsExportedAnew(t *testing.T) {
	m := sample(t, RollingBack)
	m, _ = mustStep(t, m, TimerFired)
	m.Exported = epochZero
	noted, _ := mustStep(t, m, SourceFailed)
	if noted.State != NeedsOperator || noted.Exported.IsZero() {
		t.Errorf("a note in %s: exported %v", noted.State, noted.Exported)
	}
	m, _ = mustStep(t, m, SourceResumed)
	if m.State != RollingBack || !m.Exported.IsZero() {
		t.Errorf("in %s: exported %v", m.State, m.Exported)
	}
	m, _ = mustStep(t, m, TimerFired)
	m.Exported = epochZero
	m, _ = mustStep(t, m, TargetReleased)
	if m.State != Aborted || !m.Exported.IsZero() {
		t.Errorf("cleaned up in %s: exported %v", m.State, m.Exported)
	}
}
