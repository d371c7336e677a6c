package server

import (
	"context"
	"time"
)

const (
	// reclaimPause is the least time between two reclaims: each makes the store
	// stand still, and when the records themselves fill it none helps.
	reclaimPause = time.Minute
	// reclaimMax bounds one, at some seconds per gigabyte and member.
	reclaimMax = 5 * time.Minute
)

// keepRoom keeps the store writable until ctx ends: it takes space back as often
// as the database gets full and, while this server leads, exports and deletes
// what is over. Space any server takes back, since none is elected by a database
// that is full.
func (s *Server) keepRoom(ctx context.Context) {
	look, hourly := time.NewTicker(keepEvery), time.NewTicker(forgetEvery)
	defer look.Stop()
	defer hourly.Stop()
	var last *term
	for {
		own, _, changed := s.leader.now()
		if own != last {
			last = own
			s.inTerm(own, s.tidy, s.forgetPast)
		}
		select {
		case <-s.config.Store.Full():
			s.inTerm(own, s.tidy)
			s.reclaim(ctx)
			if !rest(ctx, reclaimPause) {
				return
			}
		case <-hourly.C:
			s.inTerm(own, s.forgetPast)
		case <-look.C:
			s.inTerm(own, s.tidy)
		case <-s.mirror.ended:
			s.inTerm(own, s.tidy)
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// inTerm does what the server that leads does for all, unless own is nil, which
// means that another one leads. With a restored store nobody does before it was
// accepted: what is over by the backup need not be.
func (s *Server) inTerm(own *term, tasks ...func(context.Context)) {
	if _, why := s.mirror.recovery(); own == nil || why != "" {
		return
	}
	for _, task := range tasks {
		task(own.ctx)
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
