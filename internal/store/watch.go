package store

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"godwit.dev/godwit/internal/fleet"
)

const (
	watchQueue      = 1024 // events
	watchBackoffMin = 50 * time.Millisecond
	watchBackoffMax = 2 * time.Second
)

// Event is one change of one record. Of a deletion it has the key and the
// revision of the deletion, and no value.
type Event struct {
	Record
	Deleted bool
}

// Watch is a running watch.
type Watch struct {
	events chan Event
	err    error // written before events is closed
}

// Events gives the changes in order of version, each exactly once. It is
// closed when the watch ends; Err then says why.
func (w *Watch) Events() <-chan Event { return w.events }

// Err says why the watch ended, once Events is closed: an error wrapping
// ErrCompacted (list again), the context's error, or a *fleet.Error for what
// does not pass by itself. A watch survives lost connections and members.
func (w *Watch) Err() error { return w.err }

// EndedWatch is a watch that has ended already, as of a store that has none.
func EndedWatch(err error) *Watch {
	w := &Watch{events: make(chan Event), err: err}
	close(w.events)
	return w
}

// Watch reports every change under prefix with a version above after, which
// is the revision of a List, or the version of the last event seen. It ends
// with ctx. A reader that falls more than a bounded queue behind is not sent
// faster than it reads: the watch is taken up again where the reader is, which
// ends in ErrCompacted if that is too long ago.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) *Watch {
	w := &Watch{events: make(chan Event, watchQueue)}
	go func() {
		defer close(w.events)
		w.err = s.follow(ctx, prefix, after, w.events)
	}()
	return w
}

// follow opens etcd watches one after the other until an end is final.
func (s *Store) follow(ctx context.Context, prefix string, after int64, events chan<- Event) error {
	backoff := watchBackoffMin
	for {
		seen, err := s.followOnce(ctx, prefix, after, events)
		if seen > after {
			backoff = watchBackoffMin
		}
		after = seen
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case s.client.Ctx().Err() != nil:
			return &fleet.Error{Code: fleet.Unavailable, Op: "watch", Subject: prefix, Cause: "the store was closed"}
		case errors.Is(err, errBehind):
			continue
		case refusal(err) != nil:
			return translate(err, "watch", prefix)
		}
		retry := time.NewTimer(backoff)
		select {
		case <-retry.C:
		case <-ctx.Done():
		case <-s.client.Ctx().Done():
		}
		retry.Stop()
		backoff = min(2*backoff, watchBackoffMax)
	}
}

// errBehind ends one etcd watch because its reader lags.
var errBehind = errors.New("the reader is behind")

// followOnce forwards one etcd watch and returns the version of the last
// event it delivered. etcd's client queues without bound for a slow reader, so
// a full channel ends the watch here.
func (s *Store) followOnce(ctx context.Context, prefix string, after int64, events chan<- Event) (int64, error) {
	// Without a leader a member is silent; with this it says so, and the
	// next attempt may reach another one.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	stream := s.client.Watch(ctx, s.absolute(prefix), clientv3.WithPrefix(), clientv3.WithRev(after+1))
	for response := range stream {
		if response.CompactRevision != 0 {
			return after, rpctypes.ErrCompacted
		}
		if err := response.Err(); err != nil {
			return after, err
		}
		behind := false
		for _, e := range response.Events {
			event := Event{Record: s.record(e.Kv), Deleted: e.Type == mvccpb.DELETE}
			select {
			case events <- event:
				continue
			default:
			}
			behind = true
			select {
			case events <- event:
			case <-ctx.Done():
				return after, ctx.Err()
			}
		}
		if len(response.Events) > 0 {
			after = response.Events[len(response.Events)-1].Kv.ModRevision
		}
		if behind {
			return after, errBehind
		}
	}
	return after, errors.New("the watch was closed")
}
