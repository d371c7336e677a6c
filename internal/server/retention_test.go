package server

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
)

// archive puts records of migrations into a fleet's store.
type archive struct {
	*testFleet
	revision int64 // of the newest
}

// put stores a migration that was aborted a minute after it was created, and
// edited.
func (a *archive) put(created time.Time, edit func(*migration.Migration)) (id string) {
	a.t.Helper()
	m := migration.New(newMigrationID(created), fleet.VM{Name: "web1"}, "h2", nil, testPolicy(), "test", created)
	m.State, m.Timer, m.Ended = migration.Aborted, nil, created.Add(time.Minute)
	if edit != nil {
		edit(&m)
	}
	var err error
	if a.revision, err = a.store.Commit(a.t.Context(), nil, a.server.tables.migrations.Put(string(m.ID), m)); err != nil {
		a.t.Fatal(err)
	}
	<-a.whenApplied(a.revision)
	return string(m.ID)
}

// left lists the records in the store, sorted.
func (a *archive) left() (ids []string) {
	a.t.Helper()
	entries, _, err := a.server.tables.migrations.All(a.t.Context())
	if err != nil {
		a.t.Fatal(err)
	}
	for _, entry := range entries {
		ids = append(ids, entry.Name)
	}
	return ids
}

func (a *archive) check(want ...string) {
	a.t.Helper()
	if got, want := a.left(), slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
		a.t.Errorf("left are %v, want %v", got, want)
	}
}

// Only what is over and ended long ago is deleted.
func TestOldMigrationsGo(t *testing.T) {
	t.Parallel()
	a := &archive{testFleet: newFleet(t)}
	now := time.Now()
	old := now.Add(-2 * DefaultKeepFor)
	gone := []string{
		a.put(old, func(m *migration.Migration) { m.Committed, m.State = true, migration.Succeeded }),
		a.put(old, nil),
	}
	stay := []string{
		a.put(old, func(m *migration.Migration) { m.State, m.Ended = migration.Copying, time.Time{} }),
		a.put(old, func(m *migration.Migration) { m.Pending = []migration.Effect{{Host: "h2"}} }),
		a.put(old, func(m *migration.Migration) { m.State = migration.NeedsOperator }), // holds the VM's lock
		a.put(old, func(m *migration.Migration) { m.Ended = now }),
		a.put(now, nil),
	}
	a.server.prune(t.Context(), now.Add(-DefaultKeepFor), DefaultKeepSize)
	a.check(stay...)
	// Who comes late finds nothing.
	if again, err := a.server.pruneOne(t.Context(), fleet.MigrationID(gone[0])); again || err != nil {
		t.Errorf("one that is gone: %v, %v", again, err)
	}
}

// What takes too much room goes from the oldest on, whatever its age.
func TestTooManyMigrationsGo(t *testing.T) {
	t.Parallel()
	a := &archive{testFleet: newFleet(t)}
	now := time.Now()
	big := func(m *migration.Migration) { m.Cause = strings.Repeat("x", 100<<10) }
	age := func(hours int) time.Time { return now.Add(-time.Duration(hours) * time.Hour) }
	a.put(age(5), nil) // small, but older than one that has no room
	a.put(age(4), big)
	locked := a.put(age(3), func(m *migration.Migration) { big(m); m.State = migration.NeedsOperator })
	running := a.put(age(2), func(m *migration.Migration) { big(m); m.State = migration.Copying })
	newest := a.put(age(1), big)
	a.server.prune(t.Context(), age(1000), 350*fleet.KiB)
	a.check(locked, running, newest)
	a.server.prune(t.Context(), age(1000), 50*fleet.KiB)
	a.check(locked, running)
}

// Answers and tokens go when they are of no use any more.
func TestWhatIsPastGoes(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	answers, tokens := f.server.tables.answers, f.server.tables.tokens
	now := time.Now()
	for id, at := range map[string]time.Time{"old": now.Add(-keepAnswers - time.Second), "young": now.Add(-keepAnswers + time.Minute)} {
		_, err := f.store.Commit(t.Context(), nil,
			answers.Put(id, keptAnswer{At: at}), tokens.Put(id, pki.TokenRecord{Hash: id, Host: "h1", ExpiresAt: at}))
		if err != nil {
			t.Fatal(err)
		}
	}
	f.server.forgetPast(t.Context())
	leftAnswers, _, err := answers.All(t.Context())
	if err != nil || len(leftAnswers) != 1 || leftAnswers[0].Name != "young" {
		t.Errorf("left are %v, %v", leftAnswers, err)
	}
	leftTokens, _, err := tokens.All(t.Context())
	if err != nil || len(leftTokens) != 1 || leftTokens[0].Name != "young" {
		t.Errorf("left are %v, %v", leftTokens, err)
	}
}

// nudge has the server look for what is over, and returns when it has.
func (f *testFleet) nudge() {
	f.t.Helper()
	for range 4 { // the second comes after whatever has changed before, and is dealt with before the fourth has room
		select {
		case f.server.mirror.ended <- struct{}{}:
		case <-time.After(patience):
			f.t.Fatal("nobody looks for what is over")
		}
	}
}

// A server exports and deletes only while it leads.
func TestOnlyTheLeaderTidies(t *testing.T) {
	t.Parallel()
	a := &archive{testFleet: newFleet(t, replicas)}
	a.awaitLeader(a.testFleet)
	young := a.put(time.Now().Add(-time.Hour), nil)
	path := filepath.Join(t.TempDir(), "migrations.jsonl")
	other := a.another(func(c *Config) { c.Export, c.KeepFor = path, time.Nanosecond })
	other.awaitLeader(a.testFleet)
	other.nudge()
	a.check(young)
	if got := exported(t, path); len(got) != 0 {
		t.Errorf("a server that follows has exported %v", got)
	}
	a.stop()
	other.awaitLeader(other)
	other.nudge()
	(&archive{testFleet: other}).check()
	if got := exported(t, path); !slices.Equal(got, []string{young}) {
		t.Errorf("exported are %v, want %s", got, young)
	}
}

// Nothing is deleted because a backup says that it is over.
func TestRestoredStoreIsNotTidied(t *testing.T) {
	t.Parallel()
	before := &archive{testFleet: newFleet(t, func(c *Config) { c.KeepFor = 10 * DefaultKeepFor })}
	old := before.put(time.Now().Add(-2*DefaultKeepFor), nil)
	backup := before.backup()
	f := before.restored(func(c store.Config) error { return Restore(t.Context(), backup, c) })
	f.awaitStill()
	a := &archive{testFleet: f}
	f.nudge()
	a.check(old)
	if _, err := f.accept(); err != nil {
		t.Fatal(describe(err))
	}
	f.nudge()
	a.check()
}
