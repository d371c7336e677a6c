package migration

import (
	"slices"
	"testing"
	"time"
)

func TestNoted(t *testing.T) {
	m, _ := mustStep(t, newMigration(), Started)
	m, _ = mustStep(t, m, TargetPrepared)
	lines := len(m.Story)
	between := m.Story[1].At
	m.Story[1].At = between.Add(time.Second)
	note := Entry{At: between.Add(time.Millisecond), From: "h2", Event: SessionLost}

	noted := m.Noted(note, 1)
	if len(m.Story) != lines || len(noted.Story) != lines+1 || noted.Story[1].Event != SessionLost || noted.Story[1].State != Preparing {
		t.Errorf("%+v became %+v", m.Story, noted.Story)
	}
	if again := noted.Noted(note, 1); len(again.Story) != lines+1 {
		t.Errorf("it is noted twice: %+v", again.Story)
	}
	behind := note
	behind.At = m.Created.Add(-time.Hour)
	if late := m.Noted(behind, lines); late.Story[lines].Event != SessionLost || late.Story[lines].State != m.State {
		t.Errorf("by a clock that is behind: %+v", late.Story)
	}
	for i := range 2 * maxNotes {
		note.At = between.Add(time.Duration(i+2) * time.Second)
		noted = noted.Noted(note, 0)
	}
	if len(noted.Story) != lines+maxNotes {
		t.Errorf("%d lines", len(noted.Story))
	}
	end, _ := mustStep(t, noted, CancelAsked)
	if last := end.Story[len(end.Story)-1]; last.Event != CancelAsked {
		t.Errorf("the last line is %+v", last)
	}
	for _, kind := range Notes() {
		if slices.Contains(Events(), kind) {
			t.Errorf("%s is an event to the core", kind)
		}
	}
}
