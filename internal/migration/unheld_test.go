package migration

import "testing"

// The commit of a source whose QEMU may run the guest on by itself waits until that
// has sent everything. Before, whatever becomes of the source, the target gets no
// right to run.
func TestUnheldSource(t *testing.T) {
	for _, state := range []State{Copying, Switching} {
		asked, effects := mustStep(t, unheld(sample(t, state)), TargetLoaded)
		if asked.Committed || asked.State != Switching || len(effects) > 0 || !asked.AwaitsSource() {
			t.Fatalf("in %s: %s, committed %v, effects %v", state, asked.State, asked.Committed, effects)
		}
		if _, _, verdict := Step(asked, event(asked, TargetLoaded)); verdict != Late {
			t.Errorf("asked again, that is %s", verdict)
		}
		for name, gone := range map[string]bool{"it has failed": false, "it has ended": true} {
			e := event(asked, SourceFailed)
			e.Gone = gone
			if next, _, _ := Step(asked, e); next.State != RollingBack || next.Committed || next.SourceGone != gone {
				t.Errorf("%s: %s, committed %v", name, next.State, next.Committed)
			}
		}
		if next, effects := mustStep(t, asked, SwitchMeasured); !next.Committed || next.State != Settling || len(effects) != 1 || effects[0].Kind != RunTarget {
			t.Errorf("it has sent everything: %s, committed %v, effects %v", next.State, next.Committed, effects)
		}
		sent, _ := mustStep(t, unheld(sample(t, state)), SwitchMeasured)
		if next, _ := mustStep(t, sent, TargetLoaded); sent.Committed || !next.Committed {
			t.Errorf("it had sent everything before: committed %v, then %v", sent.Committed, next.Committed)
		}
		ended := event(sent, SourceFailed)
		ended.Gone = true
		sent, _, _ = Step(sent, ended)
		if next, _ := mustStep(t, sent, TargetLoaded); !next.Committed {
			t.Error("it had sent everything and has ended since, and the target does not get the VM")
		}
	}
}
