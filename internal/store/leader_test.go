package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

func campaign(t *testing.T, s *store.Store, id string) *store.Leadership {
	t.Helper()
	l, err := s.Campaign(t.Context(), "leader", id)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLeadership(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		first := campaign(t, s, "one")
		if record, err := s.Get(t.Context(), "leader"); err != nil || string(record.Value) != "one" {
			t.Errorf("%+v, %v", record, err)
		}
		commit(t, s, store.If(first.Held()), store.Put("by leader", nil), store.Put("while it leads", nil).During(first))

		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := s.Campaign(short, "leader", "two"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second leader: %v", err)
		}
		won := make(chan *store.Leadership, 1)
		go func() {
			second, err := s.Campaign(t.Context(), "leader", "two")
			if err != nil {
				t.Error(err)
			}
			won <- second
		}()
		select {
		case <-first.Lost():
			t.Error("lost while it was kept")
		default:
		}
		first.Resign()
		<-first.Lost()
		second := <-won
		defer second.Resign()

		_, err := s.Commit(t.Context(), store.If(first.Held()), store.Put("by old leader", nil))
		wantCode(t, err, fleet.Conflict)
		if !strings.Contains(err.Error(), "leadership was lost") {
			t.Error(err)
		}
		_, err = s.Commit(t.Context(), nil, store.Put("x", nil).During(first))
		wantCode(t, err, fleet.Conflict)
		_, err = s.Get(t.Context(), "while it leads")
		wantCode(t, err, fleet.NotFound)
		commit(t, s, store.If(second.Held()), store.Put("by leader", nil))
	})
}

// A leadership outlives its LeaderTTL as long as its process does.
func TestLeadershipIsKept(t *testing.T) {
	conforms(t, func(t *testing.T, s *store.Store) {
		l := campaign(t, s, "one")
		select {
		case <-l.Lost():
			t.Fatal("lost")
		case <-time.After(leaderTTL * 2): // the lapse of time is what is tested
		}
		commit(t, s, store.If(l.Held()), store.Put("a", nil))
		l.Resign()
	})
}

// The leader's process is killed: another succeeds it within the lease's time.
func TestLeaderDies(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	holder := launch(t, "holder", "", c.address)
	s := open(t, c.config())
	if record, err := s.Get(t.Context(), "leader"); err != nil || string(record.Value) != "holder" {
		t.Fatalf("%+v, %v", record, err)
	}
	holder.kill()
	died := time.Now()
	l := campaign(t, s, "heir")
	if took := time.Since(died); took > 2*leaderTTL {
		t.Errorf("succeeded after %v", took)
	}
	l.Resign()
}

// A leader that cannot reach the store learns that it may have been succeeded.
func TestLeadershipIsLostWithTheStore(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	l := campaign(t, open(t, c.config()), "one")
	c.process.kill()
	began := time.Now()
	<-l.Lost()
	if took := time.Since(began); took > 2*leaderTTL {
		t.Errorf("noticed after %v", took)
	}
	c.start(t)
}
