package migration

import "testing"

// What was abandoned holds nothing any more, whatever it was at.
func TestAbandonedHoldsNothing(t *testing.T) {
	for _, state := range States() {
		m := Abandon(sample(t, state), "an old copy", epochZero)
		if m.Locked() || m.AwaitsTarget() || len(m.Pending) > 0 {
			t.Errorf("%s: locked %v, awaits its target %v, pending %v", state, m.Locked(), m.AwaitsTarget(), m.Pending)
		}
		for _, kind := range []EventKind{TargetRefused, SourceRanOn, ReturnAsked} {
			if _, _, verdict := Step(m, event(m, kind)); verdict == Act {
				t.Errorf("%s, abandoned: %s acts", state, kind)
			}
		}
	}
}
