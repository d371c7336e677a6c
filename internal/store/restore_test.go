package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// A backup of either kind of store becomes an embedded one: with all records of
// that time, and with revisions that go on.
func TestRestore(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		version := commit(t, s, nil, store.Put("a", []byte("1")))
		file, err := os.Create(filepath.Join(t.TempDir(), "backup"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Backup(t.Context(), file); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		commit(t, s, nil, store.Put("a", []byte("2")))

		config := embeddedConfig(t.TempDir())
		if err := store.Restore(file.Name(), config); err != nil {
			t.Fatal(err)
		}
		wantCode(t, store.Restore(file.Name(), config), fleet.Exists)
		restored := open(t, config)
		record, err := restored.Get(t.Context(), "a")
		if err != nil || string(record.Value) != "1" || record.Version != version {
			t.Errorf("restored %+v, %v; it had version %d", record, err, version)
		}
		before, err := restored.Mark(t.Context())
		if err != nil || before.Revision < version {
			t.Errorf("mark %+v, %v", before, err)
		}
		commit(t, restored, store.If(store.At("a", version)), store.Put("a", []byte("3")))
		if after, err := restored.Mark(t.Context()); err != nil || after.Revision != before.Revision+1 || after.Cluster != before.Cluster {
			t.Errorf("mark %+v after %+v, %v", after, before, err)
		}
	})
}

// What is no whole backup is refused, and nothing is left that would be taken
// for a store.
func TestRestoreOfADamagedBackup(t *testing.T) {
	s := open(t, embeddedConfig(t.TempDir()))
	commit(t, s, nil, store.Put("a", nil))
	path := filepath.Join(t.TempDir(), "backup")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.WriteAt([]byte("x"), info.Size()/2); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	config := embeddedConfig(t.TempDir())
	for _, backup := range []string{path, filepath.Join(t.TempDir(), "missing")} {
		wantCode(t, store.Restore(backup, config), fleet.Invalid)
	}
	open(t, config) // an empty one
}
