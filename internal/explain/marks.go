package explain

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// mark is an instant of the hand-over by the clock of its host.
type mark struct {
	host string
	what string
	at   time.Time
	// late: noted by an agent that took over in the middle of the hand-over,
	// as the time at which it saw that the instant had passed.
	late bool
}

// handover holds the marks of both hosts; one that is missing has no time.
type handover struct {
	gateFlipped, stopped, preSwitchover, continued, drained, completed mark
	loaded, asked, answered, resumed                                   mark
}

func handoverOf(m *godwitv1.Migration) handover {
	s, g := m.GetSourceMarks(), m.GetTargetMarks()
	source := func(at *timestamppb.Timestamp, what string) mark { return markOf(m.GetSource(), at, what) }
	target := func(at *timestamppb.Timestamp, what string) mark { return markOf(m.GetTarget(), at, what) }
	h := handover{
		gateFlipped:   source(s.GetGateFlipped(), "gate flipped: frames for the guest go to "+m.GetTarget()+" from here on"),
		stopped:       source(s.GetStopped(), "the guest stops"+stopper(m.GetOutcome().GetStoppedBy())),
		preSwitchover: source(s.GetPreSwitchover(), "QEMU has sent the last pages and waits for leave"),
		continued:     source(s.GetContinued(), "QEMU gets leave to send the devices' state"),
		drained:       source(s.GetDrained(), drained(m.GetOutcome().GetFramesDrained())),
		completed:     source(s.GetCompleted(), "QEMU has the target's word that it loaded"),
		loaded:        target(g.GetLoaded(), "QEMU has loaded everything"),
		asked:         target(g.GetAsked(), "asks for the commit"),
		answered:      target(g.GetAnswered(), "has the answer, and with it the right to run"),
		resumed:       target(g.GetResumed(), "the guest runs"),
	}
	noteLate(&h.stopped, &h.preSwitchover, &h.continued, &h.completed)
	noteLate(&h.loaded, &h.asked, &h.answered)
	return h
}

func drained(frames int64) string {
	if frames == 0 {
		return "no frames are left in its taps"
	}
	return fmt.Sprintf("the frames left in its taps are sent on: %d", frames)
}

func stopper(by string) string {
	switch by {
	case "agent":
		return ", told to by its agent"
	case "qemu":
		return ", by QEMU itself"
	}
	return ""
}

func markOf(host string, at *timestamppb.Timestamp, what string) mark {
	if at == nil {
		return mark{}
	}
	return mark{host: host, at: at.AsTime(), what: what}
}

// noteLate finds the marks of one host that share their instant: no two things
// happen in the same nanosecond, but an agent that takes over notes all that
// it has missed with the present time.
func noteLate(marks ...*mark) {
	for i, one := range marks {
		for _, other := range marks[i+1:] {
			if !one.at.IsZero() && one.at.Equal(other.at) {
				one.late, other.late = true, true
			}
		}
	}
}

// marksOf lists the marks that there are, those of a host in the order of the
// hand-over: first those of which the server heard, or the other host, then
// those to which something of the server's led.
func marksOf(m *godwitv1.Migration) (lead, follow []mark) {
	h := handoverOf(m)
	lead = []mark{h.stopped, h.preSwitchover, h.continued, h.drained, h.loaded, h.completed, h.asked, h.resumed}
	follow = []mark{h.gateFlipped, h.answered}
	unknown := func(m mark) bool { return m.at.IsZero() }
	return slices.DeleteFunc(lead, unknown), slices.DeleteFunc(follow, unknown)
}
