package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// next takes one event, or fails with the watch's error or the test's end.
func next(t *testing.T, w *store.Watch) store.Event {
	t.Helper()
	select {
	case event, open := <-w.Events():
		if !open {
			t.Fatalf("the watch ended: %v", w.Err())
		}
		return event
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	}
	return store.Event{}
}

// ended takes what is left of a watch and gives its error.
func ended(w *store.Watch) error {
	for range w.Events() {
	}
	return w.Err()
}

func TestWatchOrder(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		ctx, cancel := context.WithCancel(t.Context())
		_, _, revision, err := s.List(ctx, "vms/", store.Page{})
		if err != nil {
			t.Fatal(err)
		}
		w := s.Watch(ctx, "vms/", revision)
		first := commit(t, s, nil, store.Put("vms/a", []byte("1")), store.Put("vms/b", []byte("2")), store.Put("vmsx", nil))
		second := commit(t, s, nil, store.Put("vms/a", []byte("3")), store.Delete("vms/b"))
		want := []string{
			fmt.Sprintf("vms/a=1@%d false", first), fmt.Sprintf("vms/b=2@%d false", first),
			fmt.Sprintf("vms/a=3@%d false", second), fmt.Sprintf("vms/b=@%d true", second),
		}
		for _, line := range want {
			e := next(t, w)
			if got := fmt.Sprintf("%s=%s@%d %v", e.Key, e.Value, e.Version, e.Deleted); got != line {
				t.Errorf("got %s, want %s", got, line)
			}
		}
		// From the middle of the history: only what comes after.
		if e := next(t, s.Watch(ctx, "vms/", first)); e.Version != second {
			t.Errorf("got version %d, want %d", e.Version, second)
		}
		cancel()
		if err := ended(w); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestWatchOfForgottenHistory(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		old := commit(t, s, nil, store.Put("a", nil))
		for range 3 {
			commit(t, s, nil, store.Put("a", nil))
		}
		if err := s.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Compact(t.Context()); err != nil {
			t.Errorf("compacting twice: %v", err)
		}
		if err := ended(s.Watch(t.Context(), "", old)); !errors.Is(err, store.ErrCompacted) {
			t.Errorf("ended with %v", err)
		}
		// What the error asks for: list again and watch from there.
		_, revision, err := s.All(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := s.Watch(ctx, "", revision)
		version := commit(t, s, nil, store.Put("a", nil))
		if e := next(t, w); e.Version != version {
			t.Errorf("got version %d, want %d", e.Version, version)
		}
	})
}

// A reader that lags far behind misses nothing and gets nothing twice.
func TestSlowReader(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		w := s.Watch(ctx, "n/", 0)
		const commits, each = 30, 100 // about three times the watch's queue
		for i := range commits {
			var ops []store.Op
			for j := range each {
				ops = append(ops, store.Put(fmt.Sprintf("n/%d", j), fmt.Append(nil, i)))
			}
			commit(t, s, nil, ops...)
		}
		for i := range commits {
			for j := range each {
				e := next(t, w)
				if want := fmt.Sprintf("n/%d=%d", j, i); want != fmt.Sprintf("%s=%s", e.Key, e.Value) {
					t.Fatalf("got %s=%s, want %s", e.Key, e.Value, want)
				}
			}
		}
	})
}

func TestWatchEndsWithTheStore(t *testing.T) {
	for _, engine := range engines {
		t.Run(engine.name, func(t *testing.T) {
			s := engine.open(t)
			w := s.Watch(t.Context(), "", 0)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			wantCode(t, ended(w), fleet.Unavailable)
			_, err := s.Get(t.Context(), "a")
			wantCode(t, err, fleet.Unavailable)
		})
	}
}

// The server is killed and comes back: the watch goes on where it was.
func TestWatchAcrossRestart(t *testing.T) {
	c := startCluster(t)
	watching, writing := open(t, c.config()), open(t, c.config())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := watching.Watch(ctx, "", 0)
	for round := range 3 {
		version := commit(t, writing, nil, store.Put("a", fmt.Append(nil, round)), store.Put("b", nil))
		for _, key := range []string{"a", "b"} {
			if e := next(t, w); e.Key != key || e.Version != version {
				t.Errorf("round %d: got %s@%d, want %s@%d", round, e.Key, e.Version, key, version)
			}
		}
		c.process.kill()
		c.start(t)
	}
}

// While a watch is cut off, what it has not seen is compacted: it must say so
// instead of leaving a gap.
func TestWatchAcrossRestartAndCompaction(t *testing.T) {
	c := startCluster(t)
	watching := open(t, c.config())
	before := commit(t, watching, nil, store.Put("a", nil))
	c.process.kill()
	c.start(t)
	writing := open(t, c.config())
	for range 3 {
		commit(t, writing, nil, store.Put("a", nil))
	}
	if err := writing.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := ended(watching.Watch(t.Context(), "", before)); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("ended with %v", err)
	}
}
