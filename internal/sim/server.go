package sim

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/store"
)

// goneAfter is how long the forwarding waits for a host without a session.
const goneAfter = time.Minute

// server is one server: the real reconciler and life cycle, on a process that can die
// and hang and whose clock may be wrong.
type server struct {
	*world
	node   *node
	proc   *proc
	skew   time.Duration // of its clock
	client client
	tables reconcile.Tables
	moves  *reconcile.Reconciler

	life      context.Context // of its term; nil while it does not lead
	end       context.CancelFunc
	held      []store.Condition // holds as long as the term does
	sessions  map[fleet.HostName]*session
	opened    uint64 // sessions so far
	addresses *addressBook

	lifecycle  *lifecycle.Lifecycle
	lifeBell   *keptBell
	living     bool                                      // it runs
	unfinished map[fleet.MigrationID]migration.Migration // by the view
	endings    []ending

	seen     int // changes of the store
	news     map[string]*change
	newsBell bell
}

func newServer(w *world, n *node) *server {
	s := &server{world: w, node: n, proc: newProc("server " + n.name), client: client{w.etcd, n, &ownerLog{world: w, seen: map[version]fleet.VM{}}}}
	s.tables = tablesOn(s.client)
	w.etcd.watchers = append(w.etcd.watchers, func() {
		w.at(nil, w.latency(), func() { w.at(s.proc, 0, s.look) })
	})
	return s
}

func tablesOn(c store.Records) reconcile.Tables {
	return reconcile.Tables{
		Store: c, VMs: store.NewTable[fleet.VM](c, "vms"), Hosts: store.NewTable[fleet.Host](c, "hosts"),
		Ledgers: store.NewTable[fleet.Ledger](c, "ledgers"), Networks: store.NewTable[fleet.Network](c, "networks"),
		Migrations: store.NewTable[migration.Migration](c, "migrations"),
	}
}

// Now, AfterFunc and Locker make the server the reconciler's Runtime.
func (s *server) Now() time.Time { return epochStart.Add(s.now + s.skew) }

// AfterFunc runs f in a task of its own.
func (s *server) AfterFunc(after time.Duration, f func()) (stop func()) {
	return s.at(s.proc, after, func() { s.spawn(s.proc, f) })
}

// Locker gives a lock that tasks wait for.
func (s *server) Locker() sync.Locker { return &lock{loop: s.loop} }

// start begins a process that knows nothing.
func (s *server) start() {
	s.proc.begin()
	s.tell("%s starts", s.proc.name)
	s.life, s.end = nil, nil
	s.sessions = map[fleet.HostName]*session{}
	s.addresses = newAddressBook(s)
	s.seen, s.news = 0, map[string]*change{}
	s.moves = reconcile.New(reconcile.Config{
		Tables: s.tables, Hosts: s, Addresses: s.addresses, GoneAfter: goneAfter, Up: s.connected, Runtime: s, Log: slog.New(slog.DiscardHandler),
	})
	s.moves.Stand()
	s.lifecycle, s.living = s.newLifecycle(), false
	s.unfinished, s.endings = map[fleet.MigrationID]migration.Migration{}, nil
	s.spawn(s.proc, s.follow)
	s.spawn(s.proc, s.lead)
	s.watch()
}

// crash ends the process. Its connections are reset.
func (s *server) crash() {
	s.tell("%s crashes", s.proc.name)
	for _, name := range s.hostNames() {
		if one := s.sessions[name]; one != nil {
			one.lostBy(s.node)
		}
	}
	s.loop.end(s.proc)
}

// watch looks at the store now and then: what it told may have been lost.
func (s *server) watch() {
	s.look()
	s.at(s.proc, time.Second, s.watch)
}

// look takes what the store has changed.
func (s *server) look() {
	e := s.etcd
	if s.seen == len(e.changes) || e.away > s.now || !s.connects(s.node, e.node) {
		return
	}
	for _, change := range e.changes[s.seen:] {
		s.news[change.key] = change
	}
	s.seen = len(e.changes)
	s.newsBell.ring()
}

// follow takes up what other servers have changed, the newest of each record.
func (s *server) follow() {
	for {
		if len(s.news) == 0 {
			s.newsBell.wait(s.loop)
		}
		news := s.news
		s.news = map[string]*change{}
		keys := slices.Sorted(maps.Keys(news))
		for _, key := range keys {
			s.addresses.heed(news[key])
		}
		for _, key := range keys {
			s.heedLife(news[key])
		}
		s.addresses.Changed()
		for _, key := range keys {
			s.heed(news[key])
		}
	}
}

// heedLife tells the life cycle of a change, once the view has all of them.
func (s *server) heedLife(change *change) {
	switch {
	case change.vm != nil:
		s.lifecycle.Changed(change.vm.Name)
	case change.migration != nil:
		s.heedMigration(*change.migration)
	}
}

func (s *server) heed(change *change) {
	if m := change.migration; m != nil {
		s.moves.CatchUp(context.Background(), store.Entry[migration.Migration]{Name: string(m.ID), Value: *m, Version: change.version})
	}
}

// lead leads whenever it can.
func (s *server) lead() {
	for {
		asked := s.now
		term, err := s.client.campaign(s.node.name)
		if err != nil {
			s.sleep(s.between(300*time.Millisecond, time.Second))
			continue
		}
		s.serveTerm(term, asked+leaderTTL)
		s.sleep(time.Second)
	}
}

// serveTerm leads until the lease has not been renewed in time.
func (s *server) serveTerm(term int64, until time.Duration) {
	s.life, s.end = context.WithCancel(context.Background())
	s.tell("%s leads", s.proc.name)
	s.addresses.begin()
	s.held = store.If(store.At(leaderKey, term))
	s.lifecycle.Begin(s.held)
	for _, v := range s.vms {
		s.lifecycle.Changed(v.name)
	}
	life := s.life
	s.spawn(s.proc, func() { s.carryOn(life) })
	s.spawn(s.proc, func() { s.keepLives(life) })
	for {
		s.sleep(leaderTTL / 3)
		sent := s.now
		err := s.client.renew(term)
		if err == nil {
			until = sent + leaderTTL
		}
		if fleet.CodeOf(err) == fleet.Conflict || s.now >= until || life.Err() != nil {
			break
		}
	}
	s.tell("%s leads no more", s.proc.name)
	s.stand()
	for s.living {
		s.sleep(50 * time.Millisecond)
	}
}

func (s *server) stand() {
	if s.life == nil {
		return
	}
	s.end()
	s.life = nil
	s.lifeBell.Ring()
	s.moves.Stand()
	for _, name := range s.hostNames() {
		if one := s.sessions[name]; one != nil {
			one.endAtServer()
		}
	}
}

// carryOn is what only the leader does.
func (s *server) carryOn(life context.Context) {
	if err := s.moves.Begin(life); err != nil {
		s.end() // the term is over when that is seen
		return
	}
	for life.Err() == nil {
		s.sleep(reconcile.RedispatchEvery)
		if life.Err() == nil {
			s.moves.Redispatch()
		}
	}
}

// hostNames is the order in which sessions are looked at.
func (w *world) hostNames() (names []fleet.HostName) {
	for _, h := range w.hosts {
		names = append(names, h.name)
	}
	return names
}

func (s *server) connected(host fleet.HostName) bool { return s.sessions[host] != nil }

// Send queues a command for a host.
func (s *server) Send(host fleet.HostName, command *godwitv1.Command) error {
	one := s.sessions[host]
	if one == nil {
		return silent("command")
	}
	one.toAgent.send(command)
	return nil
}

// commit answers a target that has loaded everything.
func (s *server) commit(host fleet.HostName, request *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
	return s.moves.Commit(context.Background(), host, request)
}

// hear takes what a host reports.
func (s *server) hear(host fleet.HostName, report *godwitv1.Report) {
	if instance := report.GetInstance(); instance != nil {
		s.tell("%s hears from %s that %s at epoch %d is %s, answering %d: %s", s.proc.name, host, instance.GetVm(), instance.GetEpoch(), instance.GetState(), report.GetSequence(), instance.GetCause())
		_ = s.lifecycle.Report(context.Background(), host, report) // of an instance it is
		s.noteEnding(host, instance)
		return
	}
	s.tell("%s hears %T of %s from %s, answering %d", s.proc.name, report.GetEvent(), report.GetSubject(), host, report.GetSequence())
	s.moves.Report(context.Background(), host, report)
}
