package server

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// exported reads the ids of a file's lines, each of which must be a record.
func exported(t *testing.T, path string) (ids []string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		m := &godwitv1.Migration{}
		if err := protojson.Unmarshal(line, m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ids = append(ids, m.GetId())
	}
	return ids
}

func newExporting(t *testing.T) (*archive, string) {
	path := filepath.Join(t.TempDir(), "migrations.jsonl")
	return &archive{testFleet: newFleet(t, func(c *Config) { c.Export = path })}, path
}

// awaitMark waits until a record that was put at a revision says that it was
// exported.
func (a *archive) awaitMark(id string, revision int64) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	watch := a.server.tables.migrations.Watch(ctx, revision)
	for event := range watch.Events() {
		entry, err := a.server.tables.migrations.Decode(event.Record)
		if err != nil {
			a.t.Fatal(err)
		}
		if entry.Name == id && !entry.Value.Exported.IsZero() {
			return
		}
	}
	a.t.Fatalf("%s is not exported: %v", id, watch.Err())
}

// A migration is exported when it has ended, once, also by a server that is
// started later, and into a new file when the old one was renamed.
func TestExport(t *testing.T) {
	t.Parallel()
	a, path := newExporting(t)
	now := time.Now()
	first := a.put(now, nil)
	revision := a.revision
	a.put(now.Add(time.Second), func(m *migration.Migration) { m.State = migration.Copying })
	a.awaitMark(first, revision)
	if got := exported(t, path); !slices.Equal(got, []string{first}) {
		t.Errorf("exported are %v, want %s", got, first)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	a.stop()
	second := newMigrationID(now.Add(3 * time.Second))
	m := migration.New(second, fleet.VM{Name: "web1"}, "h2", nil, testPolicy(), "test", now)
	m.State, m.Timer, m.Ended = migration.Aborted, nil, now
	revision, err := a.store.Commit(t.Context(), nil, a.server.tables.migrations.Put(string(m.ID), m))
	if err != nil {
		t.Fatal(err)
	}
	a.start(func(c *Config) { c.Export = path })
	a.awaitMark(string(second), revision)
	if got := exported(t, path); !slices.Equal(got, []string{string(second)}) {
		t.Errorf("exported are %v, want %s", got, second)
	}
	if got := exported(t, path+".1"); !slices.Equal(got, []string{first}) {
		t.Errorf("the renamed file has %v", got)
	}
}

// What a host still has to do holds up no export: it may never return. When it
// does, the record changes, and is exported as it is then.
func TestExportOfWhatIsNotCleanedUp(t *testing.T) {
	t.Parallel()
	a, path := newExporting(t)
	id := a.put(time.Now(), func(m *migration.Migration) {
		m.Sequence = 3
		m.Pending = []migration.Effect{{Sequence: 3, Kind: migration.ReleaseTarget, Host: "h2"}}
	})
	a.awaitMark(id, a.revision)
	a.server.prune(t.Context(), time.Now().Add(time.Hour), 0)
	a.check(id) // its host is yet to be told
	marked, err := a.server.tables.migrations.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is said twice, and means one thing
		released := migration.Event{Kind: migration.TargetReleased, From: "h2", Answers: 3}
		if _, _, err := a.reconciler().Advance(t.Context(), fleet.MigrationID(id), released); err != nil {
			t.Fatal(err)
		}
	}
	a.awaitMark(id, marked.Version)
	if got := exported(t, path); !slices.Equal(got, []string{id, id}) {
		t.Errorf("exported are %v, want %s twice", got, id)
	}
}

// Nothing is deleted that could not be exported, and what is deleted was.
func TestExportBeforeDeletion(t *testing.T) {
	t.Parallel()
	a := &archive{testFleet: newFleet(t)} // its records are older than the export
	old := time.Now().Add(-time.Hour)
	ids := []string{a.put(old, nil), a.put(old.Add(time.Second), nil)}
	a.stop() // from here on the test does its work
	folder := filepath.Join(t.TempDir(), "later")
	a.server.config.Export = filepath.Join(folder, "m.jsonl")
	a.server.prune(t.Context(), time.Now(), DefaultKeepSize)
	a.check(ids...)
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	a.server.prune(t.Context(), time.Now(), DefaultKeepSize)
	a.check()
	if got := exported(t, a.server.config.Export); !slices.Equal(got, ids) {
		t.Errorf("exported are %v, want %v", got, ids)
	}
}

// A line that was cut off spoils no other.
func TestExportEndsATornLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "m.jsonl")
	if err := os.WriteFile(path, []byte("{\"whole\":1}\n{\"to"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"{}", "[]"} {
		if err := appendLine(path, []byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if want := "{\"whole\":1}\n{\"to\n{}\n[]\n"; err != nil || string(data) != want {
		t.Errorf("%q, %v, want %q", data, err, want)
	}
}

// A server that can't export says so before it begins.
func TestExportIsCheckedAtTheStart(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.network("blue", "10.20.0.0/24") // it is up
	config := f.server.config
	config.Export = filepath.Join(t.TempDir(), "missing", "m.jsonl")
	_, err := New(t.Context(), config)
	if fleet.CodeOf(err) != fleet.Failed || !strings.Contains(err.Error(), config.Export) || fleet.HintOf(err) == "" {
		t.Errorf("%v, hint %q", err, fleet.HintOf(err))
	}
}
