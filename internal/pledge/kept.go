package pledge

import (
	"errors"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// ErrGaveUp is why a target never runs.
var ErrGaveUp = errors.New("it has given up its right to run, as its source asked")

// Kept is what an agent keeps of an instance, which commands are held against.
type Kept struct {
	Role      Role
	Migration string // that it takes part in; "" in none
	Started   bool   // it has a process, or had one since its agent began
	Ended     bool   // it has none
	Unread    bool   // its record can't be read: it may be another VM's, or of another epoch
}

// TargetOf tells whether what is here belongs to that migration; where there is
// nothing yet, it may come to.
func (k Kept) TargetOf(migration string) bool { return k.Migration == migration || k.unused() }

func (k Kept) unused() bool { return k.Migration == "" && !k.Started }

// free: it can become a source, or go on alone, without another migration's
// losing it. One that has arrived is its VM's, whoever still has to be told, and one
// that has ended is nobody's: that it has is what is answered.
func (k Kept) free() bool { return k.Migration == "" || k.Role == Arrived || k.Ended }

// remains: it is what is left of one that went on alone.
func (k Kept) remains() bool { return k.Migration == "" && k.Ended }

// ran: it has had the right to run.
func (k Kept) ran() bool { return k.Role != Arriving && k.Role != Refused }

// Spared is why an instance is not removed that a server holds to be stale, or to
// have ended; "" if it may be. State is what a session is told of it.
func (k Kept) Spared(state fleet.InstanceState, ended bool, migration string) string {
	switch {
	case k.Unread:
		return "its record can't be read"
	case k.Role == RanOn && !k.Ended:
		return "it runs on, by its target's refusal" // and the server does not know yet
	case ended && state != fleet.InstanceExited:
		return "it has not ended: it is " + string(state)
	case migration != "" && (k.Migration != migration || state != fleet.InstanceIncoming):
		return "it is not a target that waits in migration " + migration
	}
	return ""
}

// TakesStart tells whether a start of the VM is for this instance, which runs or
// is to run for it. What a migration has left that never committed is not, though
// it has the epoch. Opened says that one of its gates is, or may be, open.
func (k Kept) TakesStart(opened bool) bool {
	return k.ran() || k.Role == Arriving && opened && !k.Ended
}

// Refuses is what a target that has given up answers to a command which would let it
// run, or lose what waits in its taps; nil if it may be carried out. No server should
// send one, but it would be for an instance of that epoch and migration.
func (k Kept) Refuses(command *godwitv1.Command) *godwitv1.Report {
	if k.Role != Refused {
		return nil
	}
	switch command.GetOp().(type) {
	case *godwitv1.Command_StartCopy, *godwitv1.Command_ResumeSource, *godwitv1.Command_RetireSource, *godwitv1.Command_ReleaseSource:
		return SourceFailed(ErrGaveUp, k.Ended)
	case *godwitv1.Command_PrepareTarget, *godwitv1.Command_FinishTarget:
		if k.Ended {
			return TargetGone(ErrGaveUp, false)
		}
		return TargetFailed(ErrGaveUp, false)
	}
	return nil // the right to run is given up, too, but that has an answer of its own
}
