package migration

import "slices"

// What happened around a migration. These are no events to the core, and nothing
// follows from them; they are in its story so that what follows from silence has
// a reason there.
const (
	SessionLost EventKind = "session-lost" // of the agent at From; Detail: why
	SessionBack EventKind = "session-back" // of the agent at From; Detail: what is new
	ServerLeads EventKind = "server-leads" // another one, or the same once more
)

// Notes lists them.
func Notes() []EventKind { return []EventKind{SessionLost, SessionBack, ServerLeads} }

// maxNotes bounds the notes of a story.
const maxNotes = 50

// Noted gives the migration with a note in its story; m itself is not changed. The
// note comes after the entries that were known when it was made, and among the
// others, which another server has written, where it belongs by its time. The note
// that there is already, or for which there is no room, is left out.
func (m Migration) Noted(note Entry, known int) Migration {
	count, place := 0, len(m.Story)
	for i, entry := range m.Story {
		if entry.Event == note.Event && entry.From == note.From && entry.At.Equal(note.At) {
			return m
		}
		if slices.Contains(Notes(), entry.Event) {
			count++
		}
		if i >= known && place == len(m.Story) && entry.At.After(note.At) {
			place = i
		}
	}
	if count >= maxNotes {
		return m
	}
	note.State = Planned
	if place > 0 {
		note.State = m.Story[place-1].State
	}
	m.Story = slices.Insert(slices.Clone(m.Story), place, note)
	return m
}
