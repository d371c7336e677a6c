package server

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
)

// How long the records of migrations are kept, unless Config says otherwise. A
// record has some kilobytes, so that this is a small part of the store's quota.
const (
	DefaultKeepFor  = 30 * 24 * time.Hour
	DefaultKeepSize = 256 * fleet.MiB
)

// keepEvery is the time between two looks at what is kept for too long.
const keepEvery = 10 * time.Minute

// tidy exports migrations that have ended, and deletes those that ended too long
// ago or whose records, with all younger ones, take too much room.
func (s *Server) tidy(ctx context.Context) {
	if err := s.exportEnded(ctx); err != nil {
		s.complain(ctx, "the records of migrations that have ended can't be exported now", err)
	}
	s.prune(ctx, time.Now().Add(-s.config.KeepFor), s.config.KeepSize)
}

// prune goes by the mirror, and trusts only the record itself: the delete is
// conditioned on the version that was looked at. A server that led before may
// still be at it; who comes late finds nothing.
func (s *Server) prune(ctx context.Context, endedBefore time.Time, size fleet.Bytes) {
	deleted := 0
	for _, id := range s.mirror.pastKeeping(endedBefore, size) {
		gone, err := s.pruneOne(ctx, id)
		if err != nil {
			s.complain(ctx, "old migrations are not deleted now", err)
			break
		}
		if gone {
			deleted++
		}
	}
	if deleted > 0 {
		s.log.Info("deleted old migrations", "number", deleted)
	}
}

// complain logs an error, unless it is only that the server ends.
func (s *Server) complain(ctx context.Context, message string, err error) {
	if ctx.Err() == nil {
		s.log.Error(message, "error", err)
	}
}

// pruneOne deletes a record if it is closed, and only after it was exported. One
// that is not stays: a host that returns must find what it still has to do.
func (s *Server) pruneOne(ctx context.Context, id fleet.MigrationID) (gone bool, err error) {
	migrations := s.tables.migrations
	entry, err := migrations.Get(ctx, string(id))
	if fleet.CodeOf(err) == fleet.NotFound {
		return false, nil
	}
	if err != nil || !entry.Value.Closed() {
		return false, err
	}
	if s.exports() && entry.Value.Exported.IsZero() {
		// It needs no mark: it goes at once. A database that is full takes
		// deletions, and no marks.
		if err := s.appendRecord(entry); err != nil {
			return false, err
		}
	}
	_, err = s.tables.store.Commit(ctx, store.If(migrations.At(entry.Name, entry.Version)), migrations.Delete(entry.Name))
	if fleet.CodeOf(err) == fleet.Conflict {
		return false, nil
	}
	return err == nil, err
}

// pastKeeping gives the migrations that are closed and ended before a time, or
// whose records do not fit into the size beside all younger ones; the oldest
// first, as their ids sort.
func (m *mirror) pastKeeping(endedBefore time.Time, size fleet.Bytes) (old []fleet.MigrationID) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var younger fleet.Bytes
	for _, id := range slices.Sorted(maps.Keys(m.migrations)) {
		move := m.migrations[id]
		younger += move.size
		expired := !move.ended.IsZero() && move.ended.Before(endedBefore)
		if move.closed && (expired || younger > size) {
			old = append(old, id)
		}
	}
	slices.Reverse(old)
	return old
}

// forgetPast deletes what was kept for a time only.
func (s *Server) forgetPast(ctx context.Context) {
	before := time.Now().Add(-keepAnswers)
	err := errors.Join(
		forget(ctx, s.tables.store, s.tables.answers, func(a keptAnswer) bool { return a.At.Before(before) }),
		// For a day longer than it works, so that who uses it hears why not.
		forget(ctx, s.tables.store, s.tables.tokens, func(t pki.TokenRecord) bool { return t.ExpiresAt.Before(before) }),
	)
	if err != nil {
		s.complain(ctx, "what is past is not forgotten now", err)
	}
}

// forget deletes the records of a table that are past. One that has changed
// meanwhile is looked at another time.
func forget[T any](ctx context.Context, s *store.Store, table store.Table[T], past func(T) bool) error {
	entries, _, err := table.All(ctx)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !past(entry.Value) {
			continue
		}
		_, err := s.Commit(ctx, store.If(table.At(entry.Name, entry.Version)), table.Delete(entry.Name))
		if err != nil && fleet.CodeOf(err) != fleet.Conflict {
			return err
		}
	}
	return nil
}
