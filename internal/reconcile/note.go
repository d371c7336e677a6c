package reconcile

import (
	"errors"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// Notes are kept with what a run holds of its record, and are stored with its next
// change: nobody needs them before, and no host that comes and goes makes the
// store work. A server that ends before has noted nothing, but the next one
// notes that it leads.

// heldNote is a note that the store does not have yet.
type heldNote struct {
	migration.Entry
	known int // entries that the story had before it
}

// presence is what is known of a host's agent since this server leads.
type presence struct {
	process string    // that last had a session; "" if it did not say
	lost    time.Time // the last session; zero: there is one, or was none
}

// SessionOpened notes that the agent of a host has a session, and dispatches
// what waited for it. process tells one from another on the same host.
func (r *Reconciler) SessionOpened(host fleet.HostName, process string) {
	now := r.Runtime.Now()
	r.mu.Lock()
	before := r.agents[host]
	r.agents[host] = presence{process: process}
	r.mu.Unlock()
	var news []string
	if before.process != "" && process != "" && before.process != process {
		news = append(news, "by another process")
	}
	if !before.lost.IsZero() {
		news = append(news, "after "+now.Sub(before.lost).Round(time.Millisecond).String())
	}
	r.noteOf(host, migration.Entry{At: now, From: string(host), Event: migration.SessionBack, Detail: strings.Join(news, ", ")})
	r.HostConnected(host)
}

// SessionEnded notes that the agent of a host has no session any more.
func (r *Reconciler) SessionEnded(host fleet.HostName, cause error) {
	if !r.leads() { // the sessions end with that
		r.forgetAgent(host)
		return
	}
	now := r.Runtime.Now()
	r.mu.Lock()
	one := r.agents[host]
	one.lost = now
	r.agents[host] = one
	r.mu.Unlock()
	r.noteOf(host, migration.Entry{At: now, From: string(host), Event: migration.SessionLost, Detail: reasonOf(cause)})
}

func (r *Reconciler) forgetAgent(host fleet.HostName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.agents, host)
}

// reasonOf says in a few words why a session ended; of its own accord: "".
func reasonOf(err error) string {
	if known, is := errors.AsType[*fleet.Error](err); is {
		return wire.Bounded(known.Cause)
	}
	return ""
}

// noteLead notes that this server leads from now on. It must be called with mu
// held.
func (r *Reconciler) noteLead(one *run) {
	if one.entry.Value.State != migration.Planned { // that it is taken up says it
		one.note(migration.Entry{At: r.Runtime.Now(), From: "server", Event: migration.ServerLeads})
	}
}

// noteOf adds a note to the migrations that a host takes part in.
func (r *Reconciler) noteOf(host fleet.HostName, note migration.Entry) {
	for _, one := range r.all() {
		one.mu.Lock()
		if one.entry.Value.Involves(host) {
			one.note(note)
			r.notify(one.entry.Value.ID)
		}
		one.mu.Unlock()
	}
}

// note adds to the story of a migration that is under way. It must be called with
// mu held.
func (one *run) note(note migration.Entry) {
	if one.entry.Version == 0 || one.entry.Value.State.Final() {
		return
	}
	known := len(one.entry.Value.Story)
	noted := one.entry.Value.Noted(note, known)
	if len(noted.Story) > known { // else there is no room
		one.notes = append(one.notes, heldNote{note, known})
	}
	one.entry.Value = noted
}

// hold takes a record as the store has it, with the notes that it has not. It
// must be called with mu held.
func (one *run) hold(entry store.Entry[migration.Migration]) {
	for _, note := range one.notes {
		entry.Value = entry.Value.Noted(note.Entry, note.known)
	}
	one.entry = entry
}
