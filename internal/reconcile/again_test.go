package reconcile

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// told counts what is sent to each host.
type told map[fleet.HostName]int

func (t told) Send(host fleet.HostName, _ *godwitv1.Command) error {
	t[host]++
	return nil
}

// adopted is a reconciler with one migration, of which h2 has something to do.
func adopted(state migration.State, kind migration.EffectKind) (*Reconciler, told) {
	sent := told{}
	r := New(Config{Hosts: sent, Up: func(fleet.HostName) bool { return true }, Log: slog.New(slog.DiscardHandler)})
	m := migration.Migration{ID: "m-1", VM: "web1", Source: "h1", Target: "h2", State: state, Committed: true}
	m.Pending = []migration.Effect{{Sequence: 8, Kind: kind, Host: "h2"}}
	r.Adopt(store.Entry[migration.Migration]{Name: "m-1", Value: m, Version: 1})
	return r, sent
}

// after gives the times at which h2 is sent something again.
func (t told) after(r *Reconciler, turns int) (times []time.Duration) {
	for turn := range turns {
		before := t["h2"]
		r.Redispatch()
		if t["h2"] > before {
			times = append(times, time.Duration(turn)*RedispatchEvery)
		}
	}
	return times
}

// A host that fails to clean up is told ever more rarely, until it returns.
func TestCleaningUpIsOrderedEverMoreRarely(t *testing.T) {
	t.Parallel()
	r, sent := adopted(migration.Succeeded, migration.FinishTarget)
	want := []time.Duration{0, 2, 6, 14, 30, 62, 122, 182}
	for i := range want {
		want[i] *= time.Second
	}
	for range 2 {
		if sent["h2"] != 1 {
			t.Fatalf("at first it is sent %d times", sent["h2"])
		}
		if got := sent.after(r, 100); !slices.Equal(got, want) {
			t.Errorf("sent again after %v, want %v", got, want)
		}
		r.HostConnected("h1") // in vain
		sent["h2"] = 0
		r.HostConnected("h2")
	}
	if sent["h1"] != 0 {
		t.Errorf("h1 was sent %d commands", sent["h1"])
	}
}

// What a VM waits for is ordered in every turn, however long ago the end was.
func TestNoVMWaitsLongerForAnOrder(t *testing.T) {
	t.Parallel()
	r, sent := adopted(migration.NeedsOperator, migration.RunTarget)
	if got := sent.after(r, 100); len(got) != 100 {
		t.Errorf("sent again after %v", got)
	}
}
