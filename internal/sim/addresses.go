package sim

import (
	"math"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// gatherFor is how long changes are gathered for one push.
const gatherFor = 10 * time.Millisecond

// addressBook tells hosts where VMs are, and knows which of them know: what the
// server's pusher does, for VMs with one port in one network that every host is
// part of.
type addressBook struct {
	*server
	vms      []store.Entry[fleet.VM]
	forwards []forwarder // by VM
	revision int64
	pushing  bool
	informed []informed // by host
	waiters  []waiter
}

// forwarder is the source of a migration whose target may yet refuse.
type forwarder struct {
	id     fleet.MigrationID
	source fleet.HostName
}

type informed struct {
	session  *session
	lost     time.Duration // when it had none any more
	sent     []*host
	version  int64
	revision int64
	applied  int64
}

type waiter struct {
	revision int64
	done     func([]fleet.HostName)
}

func newAddressBook(s *server) *addressBook {
	return &addressBook{
		server: s, vms: make([]store.Entry[fleet.VM], len(s.world.vms)), forwards: make([]forwarder, len(s.world.vms)),
		informed: make([]informed, len(s.hosts)),
	}
}

// begin forgets what was of an earlier term.
func (b *addressBook) begin() {
	b.informed = make([]informed, len(b.hosts))
	for i := range b.informed {
		b.informed[i].lost = b.now
	}
	b.Changed()
}

// heed takes one change of the store: of all that was changed, before a push.
func (b *addressBook) heed(change *change) {
	b.revision = max(b.revision, change.version)
	switch {
	case change.vm != nil:
		b.vms[b.vmNamed(change.vm.Name).index] = store.Entry[fleet.VM]{Name: string(change.vm.Name), Value: *change.vm, Version: change.version}
	case change.migration != nil:
		b.forward(*change.migration)
	}
}

// forward notes who does, of all migrations of a VM.
func (b *addressBook) forward(m migration.Migration) {
	v := b.vmNamed(m.VM)
	switch now := &b.forwards[v.index]; {
	case m.AwaitsTarget():
		*now = forwarder{m.ID, m.Source}
	case now.id == m.ID:
		*now = forwarder{}
	}
}

// Changed makes it look again, soon.
func (b *addressBook) Changed() {
	if !b.pushing {
		b.pushing = true
		b.at(b.proc, gatherFor, b.push)
	}
}

func (b *addressBook) push() {
	b.pushing = false
	if b.life == nil {
		return
	}
	now := make([]*host, len(b.vms))
	for i, entry := range b.vms {
		name := entry.Value.Owner.Host
		if b.forwards[i].source != "" {
			name = b.forwards[i].source
		}
		now[i] = b.hostNamed(name)
	}
	for i := range b.informed {
		state := &b.informed[i]
		changed := state.version == 0 || !slices.Equal(state.sent, now)
		if changed && state.session == nil {
			continue
		}
		if changed {
			state.sent, state.version = now, b.revision
			state.session.toAgent.send(addressMap{b.revision, now})
		} else if state.applied >= state.version {
			state.applied = b.revision
		}
		state.revision = b.revision
	}
	b.release()
}

func (b *addressBook) connected(one *session) {
	b.informed[one.host.index] = informed{session: one}
	b.push()
}

func (b *addressBook) disconnected(one *session) {
	if state := &b.informed[one.host.index]; state.session == one {
		state.session, state.lost = nil, b.now
		b.at(b.proc, goneAfter, b.release)
	}
}

func (b *addressBook) acked(one *session, version int64) {
	if state := &b.informed[one.host.index]; state.session == one && version >= state.version {
		state.applied = state.revision
		b.release()
	}
}

// WhenApplied calls done once every host has the addresses as of a revision, or
// is gone.
func (b *addressBook) WhenApplied(revision int64, done func([]fleet.HostName)) {
	b.waiters = append(b.waiters, waiter{revision, done})
	b.at(b.proc, goneAfter, b.release)
	b.release()
}

func (b *addressBook) release() {
	reached := b.revision
	if b.bug(Hasty) {
		reached = math.MaxInt64
	}
	for _, state := range b.informed {
		if !b.bug(Hasty) && (state.session != nil || b.now-state.lost < goneAfter) {
			reached = min(reached, state.applied)
		}
	}
	b.waiters = slices.DeleteFunc(b.waiters, func(w waiter) bool {
		if w.revision > reached {
			return false
		}
		var without []fleet.HostName
		for i, state := range b.informed {
			if state.applied < w.revision {
				without = append(without, b.hosts[i].name)
			}
		}
		b.spawn(b.proc, func() { w.done(without) })
		return true
	})
}
