package explain

import (
	"fmt"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
)

// Offset shows a time from the request on to a tenth of a millisecond, which
// is what the parts of a blackout are told apart by.
func Offset(d time.Duration) string { return fmt.Sprintf("%+.4fs", d.Seconds()) }

// event says what happened, as a sentence whose subject is who said it.
func (t teller) event(entry *godwitv1.StoryEntry) string {
	detail := entry.GetDetail()
	switch migration.EventKind(entry.GetEvent()) {
	case migration.Started:
		return "takes it up"
	case migration.CancelAsked:
		return "asks to cancel: " + detail
	case migration.TimerFired:
		return with("a timer fires", ": ", detail)
	case migration.GuestMeasured:
		return with("has measured how the guest changes its memory", ", or rather has not: ", detail)
	case migration.CopyProgressed:
		return "tells how far the copy is, and its failure is predicted"
	case migration.TargetPrepared:
		return "is prepared, and waits for the state"
	case migration.TargetFailed, migration.SourceFailed:
		return failure(entry)
	case migration.SourceStopped:
		return with("says that the guest stands still", ", ", detail)
	case migration.TargetLoaded:
		return "has everything and asks for the commit"
	case migration.TargetRefused:
		return with("has given up its right to run, for good", ": ", detail)
	case migration.SourceRanOn:
		return with("has opened its gate and runs the guest on, with no server there to ask", ": ", detail)
	case migration.ReturnAsked:
		return with("asks to give the VM back to "+t.GetSource(), ": ", detail)
	case migration.HostLost:
		return with("is lost, and is not waited for any more", ": ", detail)
	case migration.SwitchMeasured:
		return with("has sent everything", "; but not all waiting frames: ", detail)
	case migration.TargetRunning:
		return "runs the guest"
	case migration.SourceRetired:
		return "has ended its instance and forwards what still comes"
	case migration.AddressesKnown:
		return with("every host sends to "+t.GetTarget()+" directly", "; but ", detail)
	case migration.TargetCompared:
		return t.compared()
	case migration.SourceReleased:
		return "has ended the forwarding and cleaned up"
	case migration.TargetFinished:
		return "has opened its gate fully and closed the tunnel"
	case migration.SourceResumed:
		return "has opened its gate and runs the guest on"
	case migration.TargetReleased:
		return with("has ended its instance and cleaned up"+t.returned(), "; not all frames went back: ", detail)
	}
	return note(entry)
}

// note says what happened around a migration.
func note(entry *godwitv1.StoryEntry) string {
	detail := entry.GetDetail()
	switch migration.EventKind(entry.GetEvent()) {
	case migration.SessionLost:
		return with("has no session with the server any more", ": ", detail)
	case migration.SessionBack:
		return with("has a session with the server", ", ", detail)
	case migration.ServerLeads:
		return "begins to lead, another one or the same once more, and carries it on"
	}
	return with(entry.GetEvent(), ": ", detail) // of a newer server
}

func failure(entry *godwitv1.StoryEntry) string {
	text := with("failed", ": ", entry.GetDetail())
	if entry.GetGone() {
		return text + "; its instance has ended"
	}
	return text
}

func (t teller) returned() string {
	if frames := t.GetOutcome().GetFramesReturned(); frames > 0 {
		return fmt.Sprintf("; %d frames that waited there went back", frames)
	}
	return ""
}

// with adds what follows a text, if anything does.
func with(text, between, rest string) string {
	if rest == "" {
		return text
	}
	return text + between + rest
}

// task says what an order tells its host to do.
func task(order *godwitv1.Order) string {
	switch migration.EffectKind(order.GetKind()) {
	case migration.PrepareTarget:
		return "make ports and an instance that waits for state"
	case migration.StartCopy:
		return "copy the memory, then stop the guest and send the rest"
	case migration.ResumeSource:
		return "end the copy, open the gate, let the guest run on"
	case migration.ReleaseTarget:
		if order.GetReturnFrames() {
			return "end the instance, send back the frames that wait, clean up"
		}
		return "end the instance, clean up"
	case migration.RunTarget:
		return "run the guest"
	case migration.RetireSource:
		return "end the instance, forward what still comes"
	case migration.ReleaseSource:
		return "end the forwarding, clean up"
	case migration.FinishTarget:
		return "open the gate fully, close the tunnel"
	}
	return strings.ReplaceAll(order.GetKind(), "-", " ") // of a newer server
}
