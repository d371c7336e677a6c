package sim

import (
	"context"
	"log/slog"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/store"
)

// mirrorWithin bounds the wait of a session for what was stored before it.
const mirrorWithin = 5 * time.Second

func (s *server) newLifecycle() *lifecycle.Lifecycle {
	return lifecycle.New(lifecycle.Config{
		Tables: lifecycleTables(s.client, s.tables), Records: s, Hosts: s, Runtime: s, Log: slog.New(slog.DiscardHandler),
	})
}

func lifecycleTables(c store.Records, t reconcile.Tables) lifecycle.Tables {
	return lifecycle.Tables{
		Store: c, VMs: t.VMs, Stops: store.NewTable[lifecycle.StopOrder](c, "stops"),
		Ledgers: t.Ledgers, Networks: t.Networks, Migrations: t.Migrations,
	}
}

// Within ends ctx after a time.
func (s *server) Within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := s.at(s.proc, limit, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// Bell gives what the task of the life cycle waits for.
func (s *server) Bell() lifecycle.Bell {
	s.lifeBell = &keptBell{loop: s.loop}
	return s.lifeBell
}

// keptBell is a bell that may be rung before anybody waits. Whoever ends a context
// with which somebody waits rings it.
type keptBell struct {
	loop *loop
	bell
	rung bool
}

// Ring wakes whoever waits, or the next one.
func (b *keptBell) Ring() {
	b.rung = true
	b.ring()
}

// Wait returns true when it is rung.
func (b *keptBell) Wait(ctx context.Context) bool {
	for !b.rung && ctx.Err() == nil {
		b.wait(b.loop)
	}
	b.rung = false
	return ctx.Err() == nil
}

// VM, VMsOf, Moving and Knows are the server's view of the records.
func (s *server) VM(name fleet.VMName) (store.Entry[fleet.VM], bool) {
	entry := s.addresses.vms[s.vmNamed(name).index]
	return entry, entry.Version != 0
}

// VMsOf gives the VMs that a host owns.
func (s *server) VMsOf(host fleet.HostName) (owned []store.Entry[fleet.VM]) {
	for _, entry := range s.addresses.vms {
		if entry.Value.Owner.Host == host {
			owned = append(owned, entry)
		}
	}
	return owned
}

// Moving tells whether a migration of the VM from or to the host is not over.
func (s *server) Moving(vm fleet.VMName, host fleet.HostName) bool {
	for _, m := range s.unfinished {
		if m.VM == vm && m.Involves(host) && !s.bug(Tidying) {
			return true
		}
	}
	return false
}

// Knows is nil once all that was stored until a revision is in the view.
func (s *server) Knows(revision int64) error {
	if s.addresses.revision < revision {
		return &fleet.Error{Code: fleet.Unavailable, Op: "follow the store", Cause: "it is behind"}
	}
	return nil
}

// heedMigration takes the newest of one into the view. Hosts that were lost and are
// back are asked again what they have, once it is over.
func (s *server) heedMigration(m migration.Migration) {
	if !m.Over() {
		s.unfinished[m.ID] = m
		return
	}
	delete(s.unfinished, m.ID)
	s.lifecycle.Changed(m.VM)
	s.sweep(m.VM)
	if m.SourceLost {
		s.askAgain(m.Source)
	}
	if m.TargetLost {
		s.askAgain(m.Target)
	}
}

func (s *server) askAgain(host fleet.HostName) { s.End(host, nil) }

// Session numbers the sessions of this process; 0 means that the host has none.
func (s *server) Session(host fleet.HostName) uint64 {
	if one := s.sessions[host]; one != nil {
		return one.number
	}
	return 0
}

// SendIn is Send into one session only.
func (s *server) SendIn(session uint64, host fleet.HostName, command *godwitv1.Command) error {
	if s.Session(host) != session {
		return silent("command")
	}
	return s.Send(host, command)
}

// End makes the session of a host end, if it has one.
func (s *server) End(host fleet.HostName, _ error) {
	if one := s.sessions[host]; one != nil {
		one.endAtServer()
	}
}

// keepLives runs the life cycle for as long as the server leads.
func (s *server) keepLives(life context.Context) {
	s.living = true
	s.lifecycle.Run(life)
	s.living = false
}

// arrive stores what a host says of itself, and waits until the view has all that
// was stored before.
func (s *server) arrive(h *host, hello *godwitv1.Hello) (at lifecycle.Arrival, err error) {
	ctx, hosts := context.Background(), s.tables.Hosts
	var revision int64
	for range store.MaxConflicts {
		var entry store.Entry[fleet.Host]
		if entry, err = hosts.Get(ctx, string(h.name)); err != nil {
			return at, err
		}
		if at, err = s.lifecycle.Arrival(ctx, entry.Value, hello); err != nil {
			return at, err
		}
		entry.Value.BootID, entry.Value.Ended = hello.GetBootId(), at.Ended
		revision, err = s.client.Commit(ctx, append(store.If(hosts.At(entry.Name, entry.Version)), s.held...), hosts.Put(entry.Name, entry.Value))
		if fleet.CodeOf(err) != fleet.Conflict {
			break
		}
	}
	for limit := s.now + mirrorWithin; err == nil && s.Knows(revision) != nil; {
		if s.now > limit {
			return at, s.Knows(revision)
		}
		s.sleep(5 * time.Millisecond)
	}
	return at, err
}
