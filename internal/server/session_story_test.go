package server

import (
	"slices"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
)

// The story of a migration says which host was away, and what came back: the
// agent, another process of it, or another server. It is kept with the next
// change, also if that is made by another server.
func TestSilenceIsInTheStory(t *testing.T) {
	t.Parallel()
	f, _ := newReplicas(t, 1)
	process := func(name string) func(*agentOptions) {
		return func(o *agentOptions) {
			o.hello = func(h *godwitv1.Hello) {
				h.Process, h.Host.Cpus = name, 100
			}
		}
	}
	h1, h2 := f.join("h1", process("p1")), f.join("h2", process("p2"))
	fl := f.fly(h1, h2, "web", testPolicy())
	fl.to(inCopy)
	before := fl.record()

	h2.close()
	lost := fl.awaitEvent(migration.SessionLost)
	f.join("h2", process("p3"))
	back := fl.awaitEvent(migration.SessionBack)
	if got := fl.record(); len(got.Story) != len(before.Story) {
		t.Errorf("a session that comes and goes was written by itself: %+v", got.Story)
	}
	checkNote(t, lost, migration.SessionLost, "h2", "")
	checkNote(t, back, migration.SessionBack, "h2", "by another process, after ")

	f = f.succeeded()
	fl.testFleet = f
	fl.awaitEvent(migration.ServerLeads)
	f.join("h1", process("p1"))
	fl.awaitEvent(migration.SessionBack)
	fl.mustCancel()
	stored := fl.record().Story
	for _, want := range []migration.EventKind{migration.ServerLeads, migration.SessionBack} {
		note := slices.IndexFunc(stored, func(e migration.Entry) bool { return e.Event == want })
		cancel := slices.IndexFunc(stored, func(e migration.Entry) bool { return e.Event == migration.CancelAsked })
		if note < len(before.Story) || note > cancel {
			t.Errorf("%s is line %d, the cancel line %d: %+v", want, note, cancel, stored)
		}
	}
}

func checkNote(t *testing.T, m *godwitv1.Migration, kind migration.EventKind, who, detail string) {
	t.Helper()
	i := slices.IndexFunc(m.GetStory(), func(e *godwitv1.StoryEntry) bool { return e.GetEvent() == string(kind) })
	if i < 0 {
		t.Fatalf("the story has no %s: %v", kind, m.GetStory())
	}
	if note := m.GetStory()[i]; note.GetWho() != who || !strings.HasPrefix(note.GetDetail(), detail) || note.GetState() != m.GetState() {
		t.Errorf("%s is told as %v", kind, note)
	}
}
