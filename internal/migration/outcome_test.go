package migration

import (
	"testing"
	"time"
)

func TestOutcome(t *testing.T) {
	at := func(ms int) time.Time { return epochZero.Add(time.Duration(ms) * time.Millisecond) }
	m := sample(t, Succeeded)
	m.Created = at(0)
	m.SourceMarks = &SourceMarks{Stopped: at(500), PreSwitchover: at(503), Continued: at(504), Passes: 4, Sent: 100, StoppedBy: "agent", FramesDrained: 2}
	m.TargetMarks = &TargetMarks{Loaded: at(514), Asked: at(515), Answered: at(517), Resumed: at(518)}
	out := m.Outcome()
	if out.Blackout != 18*time.Millisecond || out.Own != 8*time.Millisecond || out.Total != 518*time.Millisecond {
		t.Errorf("blackout %v, own %v, total %v", out.Blackout, out.Own, out.Total)
	}
	var sum time.Duration
	for _, phase := range out.Phases {
		sum += phase.Time
	}
	if sum != out.Blackout {
		t.Errorf("the phases make %v, the blackout is %v", sum, out.Blackout)
	}

	// QEMU may say that it waits before it says that it has stopped.
	m.SourceMarks.PreSwitchover = at(499)
	for _, phase := range m.Outcome().Phases {
		if phase.Time < 0 {
			t.Errorf("the phase %q takes %v", phase.Name, phase.Time)
		}
	}

	// What was not measured is not made up.
	m.TargetMarks.Resumed = time.Time{}
	if out := m.Outcome(); out.Blackout != 0 || out.Total != 0 || len(out.Phases) != 0 {
		t.Errorf("a target that never ran has %+v", out)
	}
}
