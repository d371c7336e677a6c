package migration

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Outcome is what was measured. Every instant is of an event; durations that
// begin on one host and end on the other are as good as the hosts' clocks
// agree.
type Outcome struct {
	Total          time.Duration // from the request to the target's first instruction
	Settled        time.Duration // from the request to the final state
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
		out.Settled = m.Ended.Sub(m.Created)
	}
	source, target := m.SourceMarks, m.TargetMarks
	if source != nil {
		out.Passes, out.Bytes = source.Passes, source.Sent
		out.FramesDrained, out.DrainError, out.StoppedBy = source.FramesDrained, source.DrainError, source.StoppedBy
	}
	if target == nil || target.Resumed.IsZero() {
		return out
	}
	out.Total = target.Resumed.Sub(m.Created)
	if source == nil || source.Stopped.IsZero() {
		return out
	}
	out.Blackout = target.Resumed.Sub(source.Stopped)
	out.Phases = phases(*source, *target)
	out.Own = out.Blackout
	for _, phase := range out.Phases {
		if phase.Name == DevicePhase {
			out.Own -= phase.Time
		}
	}
	return out
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
