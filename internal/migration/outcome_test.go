package migration

import (
	"testing"
	"time"
)

func TestOutcome(t *testing.T) {
	at := func(ms int) time.Time { return epochZero.Add(time.Duration(ms) * time.Millisecond) }
	m := sample(t, Succeeded)
	m.Created, m.Story = at(0), nil
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

// Clocks that are an hour apart change no figure by more than what is left open
// of when the devices' state was loaded.
func TestOutcomeWithClocksApart(t *testing.T) {
	at := func(ms int) time.Time { return epochZero.Add(time.Duration(ms) * time.Millisecond) }
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour, 300 * time.Millisecond, -300 * time.Millisecond} {
		m := sample(t, Succeeded)
		m.Created = at(0)
		for i := range m.Story {
			switch m.Story[i].Event {
			case TargetLoaded:
				m.Story[i].At = at(516)
			case TargetRunning:
				m.Story[i].At = at(520)
			}
		}
		m.SourceMarks = &SourceMarks{Stopped: at(500), PreSwitchover: at(503), Continued: at(504), Completed: at(515)}
		there := TargetMarks{Loaded: at(514), Asked: at(515), Answered: at(517), Resumed: at(518)}.shifted(ahead)
		m.TargetMarks = &there
		out := m.Outcome()
		if off := (out.Apart - ahead).Abs(); off > time.Millisecond {
			t.Errorf("%v ahead is taken for %v", ahead, out.Apart)
		}
		if off := (out.Blackout - 18*time.Millisecond).Abs(); off > time.Millisecond {
			t.Errorf("%v ahead: a blackout of %v", ahead, out.Blackout)
		}
		if out.Own < 0 || out.Own > 20*time.Millisecond || (out.Total-518*time.Millisecond).Abs() > 2*time.Millisecond {
			t.Errorf("%v ahead: own %v, total %v", ahead, out.Own, out.Total)
		}
	}
}
