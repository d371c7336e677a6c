package reconcile

import (
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// A note comes after what was known before it, also when the clock of this server
// is behind that of the one that wrote the rest.
func TestNotesByAClockThatIsBehind(t *testing.T) {
	t.Parallel()
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(s int, event migration.EventKind) migration.Entry {
		return migration.Entry{At: began.Add(time.Duration(s) * time.Second), From: "server", Event: event, State: migration.Preparing}
	}
	stored := store.Entry[migration.Migration]{Version: 1, Value: migration.Migration{
		State: migration.Preparing, Story: []migration.Entry{at(0, migration.Started), at(1, migration.TimerFired)},
	}}
	one := &run{entry: stored}
	const behind = -3600
	one.note(at(behind, migration.ServerLeads))
	one.note(at(behind+9, migration.SessionLost))
	want := []migration.EventKind{migration.Started, migration.TimerFired, migration.ServerLeads, migration.SessionLost}
	checkStory(t, one, want)

	// Another server has written meanwhile, whose clock is behind as well.
	stored.Version, stored.Value.Story = 2, append(slices.Clone(stored.Value.Story), at(behind+5, migration.CancelAsked))
	one.hold(stored)
	checkStory(t, one, slices.Insert(want, 3, migration.CancelAsked))
}

// What a server knew of a host's agent when it led before is not told when it leads
// again: the host had sessions with others meanwhile.
func TestAbsenceOfAnEarlierTerm(t *testing.T) {
	t.Parallel()
	for name, lastTerm := range map[string]func(r *Reconciler){
		"the session ended in it":   func(r *Reconciler) { r.SessionEnded("h2", nil); r.Stand() },
		"the session ended with it": func(r *Reconciler) { r.Stand(); r.SessionEnded("h2", nil) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _ := adopted(migration.Settling, migration.RunTarget)
			r.SessionOpened("h2", "p1")
			held, _ := r.Live("m-1")
			lastTerm(r)
			r.CarryOn(t.Context())
			r.Adopt(held)
			r.SessionOpened("h2", "p2")
			entry, _ := r.Live("m-1")
			if last := entry.Value.Story[len(entry.Value.Story)-1]; last.Event != migration.SessionBack || last.Detail != "" {
				t.Errorf("the last note is %+v", last)
			}
		})
	}
}

func checkStory(t *testing.T, one *run, want []migration.EventKind) {
	t.Helper()
	var got []migration.EventKind
	for _, entry := range one.entry.Value.Story {
		got = append(got, entry.Event)
	}
	if !slices.Equal(got, want) {
		t.Errorf("the story is %v, want %v", got, want)
	}
}
