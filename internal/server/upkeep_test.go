package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// hearing is a log that signals each time a message is in it.
type hearing struct {
	slog.Handler
	message string
	heard   chan struct{}
}

func (h hearing) Handle(ctx context.Context, record slog.Record) error {
	if record.Message == h.message {
		select {
		case h.heard <- struct{}{}:
		default:
		}
	}
	return h.Handler.Handle(ctx, record)
}

const writableAgain = "the store takes changes again"

// newSmallFleet is a fleet whose database may have 16 MB; start starts it.
func newSmallFleet(t *testing.T) (f *testFleet, start func() hearing) {
	dir, err := os.MkdirTemp("", "gw")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	opened, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "store"), Quota: 16 * fleet.MiB})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	f = &testFleet{t: t, dir: dir, store: opened}
	return f, func() hearing {
		log := hearing{slog.NewTextHandler(t.Output(), nil), writableAgain, make(chan struct{}, 1)}
		f.start(func(c *Config) { c.Logger = slog.New(log) })
		return log
	}
}

// fillUp puts so many versions of one record that the database is full. etcd
// looks at the size as of its last write to the file, up to a second ago.
func (f *testFleet) fillUp() {
	f.t.Helper()
	value := make([]byte, 256<<10)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := f.store.Commit(f.t.Context(), nil, store.Put("ballast", value)); err != nil {
			if fleet.CodeOf(err) != fleet.Exhausted || !errors.Is(err, store.ErrOutcomeUnknown) {
				f.t.Fatal(err)
			}
			return
		}
	}
	f.t.Fatal("it never gets full")
}

// A database that got full takes changes again without anybody's doing.
func TestFullStoreMendsItself(t *testing.T) {
	f, start := newSmallFleet(t)
	log := start()
	f.fillUp()
	select {
	case <-log.heard:
	case <-time.After(patience):
		t.Fatal("nobody reclaims")
	}
	f.network("blue", "10.20.0.0/24")
}

// One that was full when its server ended does, too.
func TestFullStoreAtStart(t *testing.T) {
	f, start := newSmallFleet(t)
	f.fillUp()
	<-f.store.Full() // that was for the server that ended
	start()
	f.network("blue", "10.20.0.0/24")
}

// Only what is over, old and not among the newest is deleted.
func TestPrune(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	now := time.Now()
	old := now.Add(-2 * keepFor)
	var want []string
	put := func(created time.Time, stays bool, edit func(*migration.Migration)) {
		t.Helper()
		m := migration.New(newMigrationID(created), fleet.VM{Name: "web"}, "h2", nil, testPolicy(), "test", created)
		m.State, m.Timer, m.Ended = migration.Aborted, nil, created.Add(time.Minute)
		if edit != nil {
			edit(&m)
		}
		revision, err := f.store.Commit(t.Context(), nil, f.server.tables.migrations.Put(string(m.ID), m))
		if err != nil {
			t.Fatal(err)
		}
		<-f.whenApplied(revision)
		if stays {
			want = append(want, string(m.ID))
		}
	}
	put(old, false, nil)
	put(old, false, func(m *migration.Migration) { m.State, m.Committed = migration.Succeeded, true })
	put(old, true, func(m *migration.Migration) { m.State = migration.Copying })
	put(old, true, func(m *migration.Migration) { m.Pending = []migration.Effect{{Host: "h2"}} })
	put(old, true, func(m *migration.Migration) { m.State = migration.NeedsOperator }) // holds the VM's lock
	put(old, true, func(m *migration.Migration) { m.Ended = now })
	put(old.Add(time.Hour), true, nil) // one of the two newest
	put(now, true, nil)                // young, and the other
	f.server.prune(t.Context(), now.Add(-keepFor), 2)
	entries, revision, err := f.server.tables.migrations.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("left are %v, want %v", got, want)
	}
	<-f.whenApplied(revision)
	if left := f.server.mirror.oldMigrations("", 0); len(left) != 4 {
		t.Errorf("the mirror has %v", left)
	}
	// Who comes late finds nothing.
	if gone, err := f.server.pruneOne(t.Context(), newMigrationID(old), now); gone || err != nil {
		t.Errorf("one that is gone: %v, %v", gone, err)
	}
	f.server.prune(t.Context(), now.Add(-keepFor), len(want))
}
