package qemu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"godwit.dev/godwit/internal/qmp"
)

// FuzzRecord reads what may lie in an instance's folder.
func FuzzRecord(f *testing.F) {
	for _, seed := range []string{`{"config": {"vm": "web1"}, "pid": 7}`, `{"pid": -1, "startTime": 1e99}`, `null`, `[`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, recordFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := readRecord(dir); err == nil && r.Config.Dir != dir {
			t.Errorf("it is of %s", r.Config.Dir)
		}
	})
}

func FuzzProcessState(f *testing.F) {
	f.Add([]byte("7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"))
	f.Add([]byte(")"))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = startOf(text) })
}

func FuzzEvent(f *testing.F) {
	f.Add(qmp.EventMigration, []byte(`{"status": "completed"}`))
	f.Add(qmp.EventMigrationPass, []byte(`{"pass": -1}`))
	f.Add(qmp.EventShutdown, []byte(`7`))
	f.Fuzz(func(_ *testing.T, name string, data []byte) {
		translate(qmp.Event{Name: name, Data: json.RawMessage(data)})
	})
}
