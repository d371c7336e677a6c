package explain

import (
	"fmt"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
)

// summary says where the VM is, what turned the migration back if anything
// did, and what is open.
func (t teller) summary() []string {
	summary := []string{t.place()}
	if turn := t.turn(); turn != "" {
		summary = append(summary, turn)
	}
	if cause := t.GetCause(); cause != "" {
		summary = append(summary, "Cause: "+cause+".")
	}
	if wait := t.GetImageWait(); wait != nil {
		summary = append(summary, fmt.Sprintf("%s waits since %s for the lock on the image of disk %s, which as far as can be told the instance on %s has.",
			t.GetTarget(), t.since(wait.GetSince().AsTime()), wait.GetDisk(), wait.GetHolder()))
	}
	if machine := t.machine(); machine != "" {
		summary = append(summary, machine)
	}
	if t.GetDeadline() != nil {
		summary = append(summary, fmt.Sprintf("Its next timer is at %s: %s.", t.since(t.GetDeadline().AsTime()), t.GetDeadlineMeans()))
	}
	return summary
}

// place says who owns the VM, and whether it runs there as far as is known.
func (t teller) place() string {
	if t.GetCommitted() && !t.GetTakenBack() || t.GetState() == string(migration.Succeeded) {
		return t.placeAtTarget()
	}
	vm, source, target := t.GetVm(), t.GetSource(), t.GetTarget()
	state := migration.State(t.GetState())
	switch {
	case t.GetSourceGone() && state == migration.Switching:
		return fmt.Sprintf("%s stands still: its instance on %s has ended, and %s has not committed yet.", vm, source, target)
	case t.GetSourceGone():
		return fmt.Sprintf("%s belongs to %s, where its instance has ended: it is down.", vm, source)
	case state == migration.NeedsOperator:
		return fmt.Sprintf("%s belongs to %s; whether it runs there is not known.", vm, source)
	case state == migration.Switching:
		return fmt.Sprintf("%s stands still: %s has stopped it, and %s has not committed yet.", vm, source, target)
	case state == migration.RollingBack:
		return fmt.Sprintf("%s stays on %s; the move to %s is being undone.", vm, source, target)
	case state.Final():
		return fmt.Sprintf("%s was not moved: it stays on %s and runs there.", vm, source)
	}
	return fmt.Sprintf("%s is on %s; the move to %s has not committed.", vm, source, target)
}

func (t teller) placeAtTarget() string {
	vm, source, target := t.GetVm(), t.GetSource(), t.GetTarget()
	runs := t.GetTargetRuns() || t.GetState() == string(migration.Succeeded)
	switch {
	case t.GetTargetGone():
		return fmt.Sprintf("%s is down: its instance on %s has ended after the commit, and what %s has is older.", vm, target, source)
	case runs && t.targetEnded():
		return fmt.Sprintf("%s was moved from %s to %s and ran there; its instance has ended.", vm, source, target)
	case runs:
		return fmt.Sprintf("%s was moved from %s to %s and runs there.", vm, source, target)
	}
	return fmt.Sprintf("%s belongs to %s since the commit; whether it runs there is not known.", vm, target)
}

// targetEnded: the target's instance has ended, as any may.
func (t teller) targetEnded() bool {
	return slices.ContainsFunc(t.GetStory(), func(entry *godwitv1.StoryEntry) bool {
		return entry.GetEvent() == string(migration.TargetFailed) && entry.GetGone() ||
			entry.GetEvent() == string(migration.HostLost) && entry.GetWho() == t.GetTarget()
	})
}

// turn tells of the event that made the migration turn back or stop.
func (t teller) turn() string {
	bad := []string{string(migration.RollingBack), string(migration.Aborted), string(migration.NeedsOperator)}
	state := string(migration.Planned)
	for i, entry := range t.GetStory() {
		if slices.Contains(bad, entry.GetState()) {
			text := t.event(entry)
			if entry.GetEvent() != string(migration.TimerFired) {
				text = entry.GetWho() + " " + text
			}
			return fmt.Sprintf("It turned from %s to %s at %s: %s.", state, entry.GetState(), t.since(entry.GetAt().AsTime()), text) + t.away(t.GetStory()[:i])
		}
		state = entry.GetState()
	}
	return ""
}

// away says which of the hosts had no session at the end of a part of the story.
func (t teller) away(story []*godwitv1.StoryEntry) (text string) {
	for _, host := range []string{t.GetSource(), t.GetTarget()} {
		var lost *godwitv1.StoryEntry
		for _, entry := range story {
			switch kind := migration.EventKind(entry.GetEvent()); {
			case entry.GetWho() != host:
			case kind == migration.SessionLost:
				lost = entry
			default: // it was heard of
				lost = nil
			}
		}
		if lost != nil {
			text += fmt.Sprintf(" The agent of %s had no session with the server then, since %s.", host, t.since(lost.GetAt().AsTime()))
		}
	}
	return text
}

// pending lists what hosts still have to do.
func (t teller) pending() []string {
	list := []string{}
	for _, one := range t.GetPending() {
		text := fmt.Sprintf("%s: %s (order %d", one.GetHost(), task(one), one.GetSequence())
		if at := t.orders[one.GetSequence()].at; !at.IsZero() {
			text += ", since " + t.since(at)
		}
		list = append(list, text+")")
	}
	return list
}
