package server

import (
	"context"
	"fmt"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// mirrorWithin bounds the wait for the mirror. It is less than an agent waits for
// the answer to its Hello.
const mirrorWithin = 5 * time.Second

// revision is the newest that was heard of.
func (m *mirror) revision() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.at.revision
}

// advance must be called with mu held.
func (m *mirror) advance(to position) {
	m.at = to
	if m.moved != nil {
		close(m.moved)
		m.moved = nil
	}
}

// reach waits until the mirror has all that was committed before a revision at
// which a record was changed that it holds. Its watch may have fallen silent:
// Unavailable when it takes longer than mirrorWithin.
func (m *mirror) reach(ctx context.Context, revision int64) error {
	late := time.NewTimer(mirrorWithin)
	defer late.Stop()
	for {
		moved := m.awaited(revision)
		if moved == nil {
			return nil
		}
		select {
		case <-moved:
		case <-late.C:
			return m.behind(revision)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaited is nil if the mirror has reached a revision, and is else closed when it
// is to be asked again.
func (m *mirror) awaited(revision int64) (moved <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at.revision >= revision {
		return nil
	}
	if m.moved == nil {
		m.moved = make(chan struct{})
	}
	return m.moved
}

// Knows is why something that rests on a revision can't be done yet, if the mirror
// may not have all that was stored until then.
func (m *mirror) Knows(revision int64) error {
	if m.revision() < revision {
		return m.behind(revision)
	}
	return nil
}

func (m *mirror) behind(revision int64) error {
	return &fleet.Error{
		Code: fleet.Unavailable, Op: "follow the store", Subject: "the fleet",
		Cause: fmt.Sprintf("this server has heard of what was stored until revision %d, and must know %d", m.revision(), revision),
		Hint:  "it catches up by itself; if that goes on, look after its etcd",
	}
}
