package server

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
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
