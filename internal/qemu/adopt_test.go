package qemu_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

// TestKillWhatDoesNotAnswer ends a QEMU that another program has started and whose
// monitor hangs.
func TestKillWhatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	dir := startedByAnother(t)
	path := filepath.Join(dir, "instance.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ PID int }
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(record.PID, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text[:len(text)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := qemu.Kill(within(t), dir, ""); fleet.CodeOf(err) != fleet.Internal || qemu.Ended(dir, "") {
		t.Errorf("without a record of it: %v", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if qemu.Ended(dir, "") {
		t.Error("it is taken for ended")
	}
	for range 2 {
		if err := qemu.Kill(within(t), dir, ""); err != nil || !qemu.Ended(dir, "") {
			t.Errorf("killed: %v", err)
		}
	}
	if empty := t.TempDir(); qemu.Kill(within(t), empty, "") != nil || !qemu.Ended(empty, "") {
		t.Error("where none was started there is nothing to end")
	}
}
