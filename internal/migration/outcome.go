package migration

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Outcome is what was measured. Every instant is of an event; durations that
// begin on one host and end on the other are as good as the hosts' clocks agree,
// but a disagreement that the marks prove is taken out of them.
type Outcome struct {
	Total          time.Duration // from the request to the target's first instruction
	Settled        time.Duration // from the request to the final state
	Apart          time.Duration // by so much at least the target's clock is ahead of the source's; zero: nothing is proven
	Passes         int
	Bytes          fleet.Bytes
	Blackout       time.Duration // from the source's STOP to the target's RESUME
	Phases         []Phase       // of the blackout, in order; their sum is Blackout
	Own            time.Duration // Blackout less QEMU's device phase
	FramesDrained  int
	FramesReturned int
	DrainError     string // why frames are lost that were not drained, or returned; else ""
	ReturnError    string
	StoppedBy      string
}

// Phase is one part of the blackout.
type Phase struct {
	Name string
	Time time.Duration
}

// DevicePhase is QEMU's own part of the blackout: from the leave to send the
// devices' state until the target has loaded it.
const DevicePhase = "device"

// Outcome gives what is known so far; what is not is zero.
func (m *Migration) Outcome() Outcome {
	out := Outcome{FramesReturned: m.FramesReturned, ReturnError: m.ReturnError, Passes: m.Progress.Pass, Bytes: m.Progress.Sent}
	if !m.Ended.IsZero() {
		out.Settled = max(0, m.Ended.Sub(m.Created))
	}
	source, target := m.SourceMarks, m.TargetMarks
	if source != nil {
		out.Passes, out.Bytes = source.Passes, source.Sent
		out.FramesDrained, out.DrainError, out.StoppedBy = source.FramesDrained, source.DrainError, source.StoppedBy
	}
	if target == nil || target.Resumed.IsZero() {
		return out
	}
	out.Total = m.total(target.Resumed)
	if source == nil || source.Stopped.IsZero() {
		return out
	}
	out.Apart = apart(*source, *target)
	there := target.shifted(-out.Apart)
	out.Blackout = there.Resumed.Sub(source.Stopped)
	out.Phases = phases(*source, there)
	out.Own = out.Blackout
	for _, phase := range out.Phases {
		if phase.Name == DevicePhase {
			out.Own -= phase.Time
		}
	}
	return out
}

// total gives the time from the request to the target's first instruction. Both
// the commit and the word of that instruction have a server's time, and it was
// between them.
func (m *Migration) total(resumed time.Time) time.Duration {
	var committed, heard time.Time
	for _, entry := range m.Story {
		switch entry.Event {
		case TargetLoaded:
			committed = entry.At
		case TargetRunning:
			heard = entry.At
		}
	}
	if heard.IsZero() || resumed.After(committed.Add(-clockSlack)) && resumed.Before(heard.Add(clockSlack)) {
		return resumed.Sub(m.Created)
	}
	return max(0, heard.Sub(m.Created))
}

// clockSlack is what clocks may disagree by before their times are corrected:
// QEMU's own events need not be in the order in which it has written them.
const clockSlack = 5 * time.Millisecond

// apart gives by how much the target's clock is ahead of the source's, zero if
// they agree as far as can be told. QEMU loads the devices' state after the
// source got leave to send it, and before the source has the word that it is
// loaded; where the target's clock puts that outside, the end is taken for it,
// so that the blackout is rather told too long.
func apart(source SourceMarks, target TargetMarks) time.Duration {
	begin, end := source.Continued, source.Completed
	if target.Loaded.IsZero() || begin.IsZero() || end.Before(begin) {
		return 0
	}
	if target.Loaded.After(begin.Add(-clockSlack)) && target.Loaded.Before(end.Add(clockSlack)) {
		return 0
	}
	return target.Loaded.Sub(end)
}

// shifted gives the marks by a clock that is ahead by d.
func (t TargetMarks) shifted(d time.Duration) TargetMarks {
	for _, at := range []*time.Time{&t.Loaded, &t.Asked, &t.Answered, &t.Resumed} {
		*at = at.Add(d)
	}
	return t
}

func phases(source SourceMarks, target TargetMarks) []Phase {
	ends := []struct {
		name string
		end  time.Time
	}{
		{"last pages", source.PreSwitchover}, // QEMU sends what was dirty at the stop
		{"continue", source.Continued},       // the source's agent gives leave
		{DevicePhase, target.Loaded},         // QEMU sends and loads the devices
		{"notice", target.Asked},             // the target's agent learns of it
		{"commit", target.Answered},          // one compare-and-swap at the server
		{"start", target.Resumed},            // the target's vCPUs begin
	}
	begin := source.Stopped
	var list []Phase
	for _, part := range ends {
		// QEMU may say that it waits a moment before it says that it stopped.
		if part.end.Before(begin) {
			part.end = begin
		}
		list = append(list, Phase{part.name, part.end.Sub(begin)})
		begin = part.end
	}
	return list
}
