package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func TestSpentEpochs(t *testing.T) {
	dir := t.TempDir()
	s, err := loadSpent(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, epoch := range []fleet.Epoch{3, 1} { // it never goes back
		if err := s.note("u1", epoch, ""); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = loadSpent(dir); err != nil || s.of("u1").Epoch != 3 || s.of("u2").Epoch != 0 {
		t.Errorf("loaded %v and %v, %v", s.of("u1").Epoch, s.of("u2").Epoch, err)
	}
	for i := range spentMax {
		s.epochs = append(s.epochs, spentEpoch{UID: fleet.InstanceUID(fmt.Sprint(i)), Epoch: 1})
	}
	if err := s.note("u2", 1, ""); err != nil || len(s.epochs) != spentMax || s.of("u2").Epoch != 1 || s.of("u1").Epoch != 0 {
		t.Errorf("%d are remembered; u2 at %d, u1 at %d; %v", len(s.epochs), s.of("u2").Epoch, s.of("u1").Epoch, err)
	}
	if err := os.WriteFile(filepath.Join(dir, spentFile), []byte(`[{"uid":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadSpent(dir); fleet.CodeOf(err) != fleet.Invalid || fleet.HintOf(err) == "" {
		t.Errorf("damaged: %v", err)
	}
}
