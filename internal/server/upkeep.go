package server

import (
	"context"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

const (
	// reclaimPause is the least time between two reclaims: each makes the store
	// stand still, and when the records themselves fill it none helps.
	reclaimPause = time.Minute
	// reclaimMax bounds one, at some seconds per gigabyte and member.
	reclaimMax = 5 * time.Minute

	// Migrations that are over are kept for keepFor, and the newest keepNewest
	// for as long as it takes: a record has some kilobytes, so that these fill
	// a small part of the store's quota.
	keepFor    = 30 * 24 * time.Hour
	keepNewest = 10_000
	pruneEvery = 24 * time.Hour
)

// keepRoom keeps the store writable until ctx ends: it deletes what nobody asks
// for any more, and takes space back as often as the database gets full.
func (s *Server) keepRoom(ctx context.Context) {
	daily, hourly := time.NewTicker(pruneEvery), time.NewTicker(forgetEvery)
	defer daily.Stop()
	defer hourly.Stop()
	s.forgetAnswers(ctx, time.Now().Add(-keepAnswers))
	s.prune(ctx, time.Now().Add(-keepFor), keepNewest)
	for {
		select {
		case <-s.config.Store.Full():
			s.prune(ctx, time.Now().Add(-keepFor), keepNewest)
			s.reclaim(ctx)
			if !rest(ctx, reclaimPause) {
				return
			}
		case <-hourly.C:
			s.forgetAnswers(ctx, time.Now().Add(-keepAnswers))
		case <-daily.C:
			s.prune(ctx, time.Now().Add(-keepFor), keepNewest)
		case <-ctx.Done():
			return
		}
	}
}

// rest reports whether ctx still lives after the pause.
func rest(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// reclaimAtStart is for a database that was full when its last server ended:
// not even this one's start could be written to it.
func (s *Server) reclaimAtStart(ctx context.Context) {
	full, err := s.config.Store.AtQuota(ctx)
	if err != nil {
		s.log.Warn("whether the store is full is not known", "error", err)
	}
	if full {
		s.reclaim(ctx)
	}
}

// reclaim only logs what goes wrong: reads and running VMs need no room.
func (s *Server) reclaim(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reclaimMax)
	defer cancel()
	s.log.Warn("the store is full: taking back the space of old versions of records")
	began := time.Now()
	if err := s.config.Store.Reclaim(ctx); err != nil {
		if ctx.Err() == nil {
			s.log.Error("the store stays full", "error", err)
		}
		return
	}
	s.log.Info("the store takes changes again", "took", time.Since(began))
}

// prune deletes migrations that ended before a time and are not among the
// newest keep. It goes by the mirror, and trusts only the record itself: the
// delete is conditioned on the version that was looked at. With several servers
// all do it, and who comes late finds nothing.
func (s *Server) prune(ctx context.Context, before time.Time, keep int) {
	deleted := 0
	for _, id := range s.mirror.oldMigrations(newMigrationID(before), keep) {
		gone, err := s.pruneOne(ctx, id, before)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("old migrations are not deleted now", "deleted", deleted, "error", err)
			}
			return
		}
		if gone {
			deleted++
		}
	}
	if deleted > 0 {
		s.log.Info("deleted old migrations", "number", deleted, "endedBefore", before)
	}
}

func (s *Server) pruneOne(ctx context.Context, id fleet.MigrationID, before time.Time) (gone bool, err error) {
	migrations := s.tables.migrations
	entry, err := migrations.Get(ctx, string(id))
	if fleet.CodeOf(err) == fleet.NotFound {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	m := entry.Value
	if !m.State.Final() || len(m.Pending) > 0 || m.Locked() || m.Ended.IsZero() || !m.Ended.Before(before) {
		return false, nil
	}
	_, err = s.tables.store.Commit(ctx, store.If(migrations.At(entry.Name, entry.Version)), migrations.Delete(entry.Name))
	if fleet.CodeOf(err) == fleet.Conflict {
		return false, nil
	}
	return err == nil, err
}

// oldMigrations gives those that are over, not younger than the id youngest and
// not among the newest keep, the newest first, as their ids sort.
func (m *mirror) oldMigrations(youngest fleet.MigrationID, keep int) (old []fleet.MigrationID) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]fleet.MigrationID, 0, len(m.migrations))
	for id := range m.migrations {
		all = append(all, id)
	}
	slices.Sort(all)
	for _, id := range all[min(keep, len(all)):] {
		if id >= youngest && m.migrations[id].over {
			old = append(old, id)
		}
	}
	return old
}
