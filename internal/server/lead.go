package server

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// leaderKey is the record in which the server that leads names itself. It
// vanishes with its leadership.
const leaderKey = "leader"

const (
	// leaderWithin bounds how long a call waits for a server to lead. It is
	// more than a dead leader's key lives on, and less than an agent waits for
	// the answer to its Hello.
	leaderWithin = 8 * time.Second
	// campaignPause is the pause after a term that could not be begun, or an
	// election that the store refused.
	campaignPause = time.Second
	// agentsBackWithin is how long the agent of a healthy host may need to find
	// a new leader. It misses the last one for 6 s, waits 10 s in vain for the
	// welcome of a server that hangs, and rests up to 7.5 s before it tries all
	// of them again; what is left is for the connecting.
	agentsBackWithin = 30 * time.Second
)

// leaderRecord says who leads.
type leaderRecord struct {
	URL string `json:"url"` // at which agents and other servers reach it
}

// term is the time for which this server leads.
type term struct {
	ctx   context.Context
	end   context.CancelFunc
	held  []store.Condition // holds as long as this term does
	began time.Time         // before any session of it
	heard sync.Map          // the hosts that have, or had, a session in it
	// sessions are those of the agents; the term is over when they are.
	sessions sync.WaitGroup
}

// leader knows which server leads. It is safe for concurrent use.
type leader struct {
	own string // this server's URL

	mu      sync.Mutex
	term    *term         // nil while this server does not lead
	url     string        // of the server that leads by the records, "" for none
	changed chan struct{} // closed with every change
}

func newLeader(own string) *leader { return &leader{own: own, changed: make(chan struct{})} }

func (l *leader) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	close(l.changed)
	l.changed = make(chan struct{})
}

// noticed takes what the records say.
func (l *leader) noticed(url string) { l.set(func() { l.url = url }) }

// now gives the term of this server, or else the URL of another one that leads,
// or neither; changed is closed when that is not so any more.
func (l *leader) now() (own *term, url string, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term == nil && l.url != l.own {
		url = l.url
	}
	return l.term, url, l.changed
}

// await is now, once there is an answer. Unavailable when nobody leads within
// the limit.
func (l *leader) await(ctx context.Context, limit time.Duration) (own *term, url string, err error) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for {
		own, url, changed := l.now()
		if own != nil || url != "" {
			return own, url, nil
		}
		select {
		case <-changed:
		case <-late.C:
			return nil, "", noLeader()
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
}

func noLeader() error {
	return &fleet.Error{
		Code: fleet.Unavailable, Op: "find the leading server",
		Cause: "no server leads at the moment",
		Hint:  "another one takes over within seconds: try again; if that goes on, look after the servers and their etcd",
	}
}

// join takes part in a term, until leave; false when it is over.
func (l *leader) join(t *term) (leave func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term != t {
		return nil, false
	}
	t.sessions.Add(1)
	return t.sessions.Done, true
}

// lead leads whenever it is this server's turn, until ctx ends. Without
// replicas it always is: the store is this process's own.
func (s *Server) lead(ctx context.Context) error {
	for !s.config.Replicas && ctx.Err() == nil {
		if err := s.serveTerm(ctx, &term{}); err != nil {
			return err
		}
	}
	record, err := json.Marshal(leaderRecord{URL: s.leader.own})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		err := s.serveElected(ctx, string(record))
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.log.Warn("this server cannot lead now", "error", err)
			rest(ctx, campaignPause)
		}
	}
	return nil
}

// serveElected waits until this server is elected, and leads until it has lost
// that.
func (s *Server) serveElected(ctx context.Context, id string) error {
	leadership, err := s.config.Store.Campaign(ctx, leaderKey, id)
	if err != nil {
		return err
	}
	// Resigned only when nothing is done on its behalf any more.
	defer leadership.Resign()
	ctx, end := context.WithCancel(ctx)
	defer end()
	go func() {
		select {
		case <-leadership.Lost():
			end()
		case <-ctx.Done():
		}
	}()
	s.log.Info("this server leads", "url", s.leader.own)
	err = s.serveTerm(ctx, &term{held: store.If(leadership.Held())})
	s.log.Info("this server leads no more", "error", err)
	return err
}

// serveTerm does what one server does for all, until ctx ends or something
// fails. When it returns nothing of it goes on.
func (s *Server) serveTerm(ctx context.Context, t *term) error {
	t.ctx, t.end = context.WithCancel(ctx)
	t.began = time.Now()
	defer t.end()
	restored, err := s.loadRecovery(t.ctx)
	if err != nil {
		return err
	}
	s.addresses.begin()
	s.lifecycle.Begin(t.held)
	s.recovery.forget()
	s.lifecycle.Changed(s.mirror.vmNames()...)
	s.leader.set(func() { s.leader.term = t })
	if restored {
		s.log.Error("the store was restored: nothing is done until godwit server accept-restore")
		<-t.ctx.Done()
	} else {
		err = s.actFor(t.ctx)
	}
	t.end()
	s.leader.set(func() { s.leader.term = nil })
	t.sessions.Wait() // each ends with the term
	return err
}

// actFor is all that a leader does by itself, until ctx ends or something fails.
func (s *Server) actFor(ctx context.Context) error {
	group, within := errgroup.WithContext(ctx)
	group.Go(func() error { s.addresses.run(within); return nil })
	group.Go(func() error { s.lifecycle.Run(within); return nil })
	group.Go(func() error { return s.migrations.Run(within) })
	group.Go(func() error { s.leases.Run(within); return nil })
	group.Go(func() error { s.removeDisks(within); return nil })
	if err := group.Wait(); ctx.Err() == nil {
		return err
	}
	return nil
}

// mayBeUp refuses what must not be done to a host that is up, while the agent of
// one without a session may only not have found this leader yet.
func (s *Server) mayBeUp(host fleet.HostName, op, subject string) error {
	own, _, _ := s.leader.now()
	if own == nil {
		return noLeader()
	}
	wait := agentsBackWithin - time.Since(own.began)
	if _, heard := own.heard.Load(host); heard || wait <= 0 {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Unavailable, Op: op, Subject: subject, RetryAfter: wait,
		Cause: fmt.Sprintf("this server leads for less than %v: %s may be up, and its agent not have found it yet", agentsBackWithin, host),
		Hint:  fmt.Sprintf("ask again in %v; a host that is up is so by then", max(wait.Round(time.Second), time.Second)),
	}
}

// notLeading is why sessions end with a term.
func notLeading(host fleet.HostName) error {
	return &fleet.Error{
		Code: fleet.Unavailable, Op: "keep session", Subject: "host " + string(host),
		Cause: "this server does not lead any more", Hint: "the agent finds the one that does by itself",
	}
}
