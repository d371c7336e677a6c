package qemu

import (
	"encoding/json"
	"fmt"
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

// FuzzProgress reads what QEMU may say of a migration: nothing is less than
// nothing.
func FuzzProgress(f *testing.F) {
	for _, seed := range []string{
		`{"status": "active", "total-time": 7, "ram": {"transferred": 1, "remaining": 2, "total": 3, "page-size": 4096, "dirty-pages-rate": 5, "dirty-sync-count": 1, "mbps": 0.5}}`,
		`{"status": "active", "ram": {"remaining": -1, "page-size": 4096, "dirty-pages-rate": 9223372036854775807, "dirty-sync-count": -1, "mbps": -1e300}}`,
		`{"downtime": 9223372036854775807, "setup-time": -9223372036854775808}`, `{"ram": null}`, `{"ram": {"mbps": 1e308}}`, `[]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var said qmp.QueryMigrateResult
		if json.Unmarshal(text, &said) != nil {
			return
		}
		p := progressOf(said)
		const most = 1 << 63
		if p.Pass < 0 || p.Transferred >= most || p.Remaining >= most || p.Total >= most || p.PageSize >= most ||
			!(p.DirtyRate >= 0) || !(p.Bandwidth >= 0) ||
			p.TotalTime < 0 || p.SetupTime < 0 || p.Downtime < 0 || p.DowntimeNext < 0 {
			t.Errorf("%s became %+v", text, p)
		}
	})
}

// FuzzPIDFile: whatever stands in it, no process is taken for QEMU that is not
// of the instance.
func FuzzPIDFile(f *testing.F) {
	for _, seed := range []string{"1\n", fmt.Sprint(os.Getpid()), "-1", "0", "99999999999999999999", "self", "../1", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, pidFile), text, 0o600); err != nil {
			t.Fatal(err)
		}
		r := &record{Config: Config{VM: "web1", UID: "u1", Epoch: 1, Dir: dir}}
		if err := r.findByPIDFile(); err == nil {
			t.Errorf("%q: process %d is taken for it", text, r.PID)
		}
	})
}
