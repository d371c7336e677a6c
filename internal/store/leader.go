package store

import (
	"context"
	"errors"
	"math"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"godwit.dev/godwit/internal/fleet"
)

// renewRetry is the pause after a renewal that failed at once.
const renewRetry = 100 * time.Millisecond

// Leadership is held by one process at a time for a key. Holding it is a
// matter of time and can end unnoticed while a process sleeps, so what only
// the leader may write carries Held as a condition of its Commit.
type Leadership struct {
	store   *Store
	key     string
	lease   clientv3.LeaseID
	created int64
	lost    chan struct{}
	cancel  context.CancelFunc
}

// Campaign waits until this process leads on key, or ctx ends. id is what
// others see there (Get). It keeps trying through lost connections. Nobody
// else may write key. A leader that dies is succeeded within LeaderTTL; the
// embedded store, which only one process can have, succeeds at once.
func (s *Store) Campaign(ctx context.Context, key, id string) (*Leadership, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	backoff := watchBackoffMin
	for {
		l, err := s.campaignOnce(ctx, key, id)
		switch {
		case err == nil && l != nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err == nil:
			backoff = watchBackoffMin // somebody else was faster
			continue
		case fleet.CodeOf(err) != fleet.Unavailable, s.client.Ctx().Err() != nil:
			return nil, err
		}
		retry := time.NewTimer(backoff)
		select {
		case <-retry.C:
		case <-ctx.Done():
		}
		retry.Stop()
		backoff = min(2*backoff, watchBackoffMax)
	}
}

// campaignOnce waits for the key to be free and tries to take it. It returns
// nil without an error when another process took it.
func (s *Store) campaignOnce(ctx context.Context, key, id string) (*Leadership, error) {
	if err := s.awaitFree(ctx, key); err != nil {
		return nil, err
	}
	asked := time.Now()
	lease, err := s.grant(ctx)
	if err != nil {
		return nil, err
	}
	l := &Leadership{store: s, key: key, lease: lease, lost: make(chan struct{})}
	l.created, err = s.Commit(ctx, If(Absent(key)), Put(key, []byte(id)).During(l))
	if err != nil {
		// Revoking the lease also takes back a key that was put although
		// the reply was lost.
		l.revoke()
		if fleet.CodeOf(err) == fleet.Conflict {
			return nil, nil
		}
		return nil, err
	}
	keeping, cancel := context.WithCancel(s.client.Ctx())
	l.cancel = cancel
	go l.keep(keeping, asked.Add(s.config.LeaderTTL))
	return l, nil
}

func (s *Store) grant(ctx context.Context) (clientv3.LeaseID, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	response, err := s.client.Grant(ctx, int64(math.Ceil(s.config.LeaderTTL.Seconds())))
	if err != nil {
		return 0, translate(err, "grant lease", "")
	}
	return response.ID, nil
}

// awaitFree returns when no process leads on key.
func (s *Store) awaitFree(ctx context.Context, key string) error {
	for {
		response, err := s.readLeader(ctx, key)
		if err != nil {
			return translate(err, "campaign", key)
		}
		if len(response.Kvs) == 0 {
			return nil
		}
		if s.awaitDeletion(ctx, key, response.Header.Revision) {
			return nil
		}
		if err := errors.Join(ctx.Err(), s.client.Ctx().Err()); err != nil {
			return translate(err, "campaign", key)
		}
	}
}

func (s *Store) readLeader(ctx context.Context, key string) (*clientv3.GetResponse, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.client.Get(ctx, s.absolute(key))
}

// awaitDeletion reports whether the key was deleted after revision; false
// when the watch broke off and the key must be read again.
func (s *Store) awaitDeletion(ctx context.Context, key string, revision int64) bool {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	stream := s.client.Watch(ctx, s.absolute(key), clientv3.WithRev(revision+1))
	for response := range stream {
		for _, e := range response.Events {
			if e.Type == mvccpb.DELETE {
				return true
			}
		}
	}
	return false
}

// keep renews the lease, at thirds of its time, until it is lost or given up.
// deadline is when the lease ends unless it is renewed; it counts from before
// a request was sent, so that it is never later than the server's own.
func (l *Leadership) keep(ctx context.Context, deadline time.Time) {
	defer close(l.lost)
	ttl := l.store.config.LeaderTTL
	timer := time.NewTimer(ttl / 3)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		sent := time.Now()
		err := l.renew(ctx, sent.Add(min(ttl/3, deadline.Sub(sent))))
		switch {
		case err == nil:
			deadline = sent.Add(ttl)
			timer.Reset(ttl / 3)
		case ctx.Err() != nil, errors.Is(err, rpctypes.ErrLeaseNotFound), !time.Now().Before(deadline):
			return
		default:
			timer.Reset(min(renewRetry, time.Until(deadline)))
		}
	}
}

func (l *Leadership) renew(ctx context.Context, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	_, err := l.store.client.KeepAliveOnce(ctx, l.lease)
	return err
}

// Lost is closed when the leadership has ended: not renewed within LeaderTTL,
// resigned, or the store closed.
func (l *Leadership) Lost() <-chan struct{} { return l.lost }

// Held is the condition that this very leadership still stands when the
// Commit takes effect.
func (l *Leadership) Held() Condition { return Condition{l.key, createdAt, l.created} }

// Resign gives the leadership up, so that another process can lead at once.
// It returns after Lost is closed.
func (l *Leadership) Resign() {
	l.cancel()
	<-l.lost
	l.revoke()
}

// revoke ends the lease and with it the key. If it fails the lease ends by
// itself.
func (l *Leadership) revoke() {
	ctx, cancel := l.store.bound(l.store.client.Ctx())
	defer cancel()
	_, _ = l.store.client.Revoke(ctx, l.lease)
}
