package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/slow"
	"godwit.dev/godwit/internal/store"
)

// overSlowLink gives a store that reaches its cluster by a link that can be made
// slow, and gives up a call after three seconds.
func overSlowLink(t *testing.T, c *cluster) (*store.Store, *slow.Link) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	link := slow.New(listener, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", c.address)
	})
	t.Cleanup(func() {
		if err := link.Close(); err != nil {
			t.Error(err)
		}
	})
	config := c.config()
	config.Endpoints, config.RequestTimeout = []string{"http://" + listener.Addr().String()}, 3*time.Second
	return open(t, config), link
}

// A store that is slow is believed as long as it answers in time. What it does
// after that is not known, until it answers again; and a watch gives all of it,
// late and in order.
func TestSlowStore(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	s, link := overSlowLink(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := s.Watch(ctx, "n/", 0)
	var want []string
	commit(t, s, nil, store.Put("n/fast", nil))
	want = append(want, "n/fast")

	link.Delay(200 * time.Millisecond)
	for i := range 3 {
		key := fmt.Sprintf("n/late-%d", i)
		commit(t, s, nil, store.Put(key, nil))
		want = append(want, key)
	}

	link.Delay(5 * time.Second)
	_, err := s.Commit(t.Context(), nil, store.Put("n/lost", nil))
	if fleet.CodeOf(err) != fleet.Unavailable || !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("what was not answered in time: %v", err)
	}
	_, err = s.Get(t.Context(), "n/lost")
	wantCode(t, err, fleet.Unavailable)
	want = append(want, "n/lost") // it was done all the same

	link.Delay(0)
	for _, key := range want {
		if e := next(t, w); e.Key != key {
			t.Errorf("got %s, want %s", e.Key, key)
		}
	}
	if _, err := s.Get(t.Context(), "n/lost"); err != nil {
		t.Errorf("it answers in time again: %v", err)
	}
}

// A watch that lags behind a slow link, and whose next revision is compacted when
// the link has broken, says so: it leaves no gap.
func TestCompactedUnderASlowWatch(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	watching, link := overSlowLink(t, c)
	writing := open(t, c.config())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := watching.Watch(ctx, "", 0)
	seen := commit(t, writing, nil, store.Put("a", nil))
	if e := next(t, w); e.Version != seen {
		t.Fatalf("got version %d, want %d", e.Version, seen)
	}
	link.Delay(time.Hour)
	for range 3 {
		commit(t, writing, nil, store.Put("a", nil))
	}
	if err := writing.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	link.Delay(0)
	link.Break() // and what was on the way is lost
	if err := ended(w); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("ended with %v", err)
	}
}
