package server

import (
	"context"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// goneAfter is how long after the end of its session, or since this server
// leads, a host counts as gone. Until then it is waited for: its kernel sends
// on by the map that it has, whether its agent runs or not. It is more than an
// agent takes to come back, and no more than a migration may take to settle.
const goneAfter = time.Minute

// addressPusher keeps every connected host informed of the addresses that
// concern it, and knows which of them have applied what. A host whose part of
// the map did not change is not bothered: what it has is the newer state, too.
type addressPusher struct {
	mirror *mirror
	hub    *hub
	wake   chan struct{}
	began  time.Time

	mu       sync.Mutex
	revision int64 // of the store, as of which the maps were last made in this term
	hosts    map[fleet.HostName]*informed
	waiters  []waiter
}

// informed is what a host was sent that is connected, or that takes part in a
// network and is not.
type informed struct {
	connected bool
	gone      bool        // not connected for so long that nobody waits for it
	giveUp    *time.Timer // makes it so, if it is not connected

	networks []*godwitv1.NetworkMap
	version  int64 // of the message that carried them; 0 before the first
	revision int64 // of the store; networks are still right as of it
	applied  int64 // the host has said that it has what is right as of it; 0 for nothing
	acked    int64 // the newest version that it has applied
}

// waiter wants to know when the hosts have the addresses as of a revision; done
// is given those that have not and are gone.
type waiter struct {
	revision int64
	done     func(without []fleet.HostName)
}

func newAddressPusher(m *mirror, h *hub) *addressPusher {
	return &addressPusher{
		mirror: m, hub: h, wake: make(chan struct{}, 1), began: time.Now(), hosts: map[fleet.HostName]*informed{},
	}
}

// begin forgets what was of an earlier term, in which this server led: hosts
// have other sessions now, and have perhaps heard of others. Whoever waits goes
// on to wait, at least until the maps are made anew, which names the hosts.
func (p *addressPusher) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, state := range p.hosts {
		if state.giveUp != nil {
			state.giveUp.Stop()
		}
	}
	p.began, p.revision, p.hosts = time.Now(), 0, map[fleet.HostName]*informed{}
	p.Changed()
}

// Changed says that the mirror has changed; any number of calls may lead to
// one push. It does not block.
func (p *addressPusher) Changed() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// gatherFor is how long changes are gathered for one push. It keeps the push of
// a commit off the moment in which the target starts, and joins those of many.
// Until it has come, the old host forwards.
const gatherFor = 10 * time.Millisecond

// run pushes after changes until ctx ends.
func (p *addressPusher) run(ctx context.Context) {
	for {
		select {
		case <-p.wake:
		case <-ctx.Done():
			return
		}
		gathered := time.NewTimer(gatherFor)
		select {
		case <-gathered.C:
			p.push()
		case <-ctx.Done():
			gathered.Stop()
			return
		}
	}
}

func (p *addressPusher) push() {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps, at := p.mirror.addressMaps()
	p.revision = at.revision
	for host := range maps {
		if p.hosts[host] == nil { // what it has, an earlier server has sent it
			p.hosts[host] = &informed{}
			p.lose(host, goneAfter-time.Since(p.began))
		}
	}
	for host, state := range p.hosts {
		if !state.connected && len(maps[host]) == 0 {
			state.giveUp.Stop()
			delete(p.hosts, host) // nobody there has a frame to send
			continue
		}
		changed := state.version == 0 || !sameNetworks(state.networks, maps[host])
		if changed && !state.connected {
			continue
		}
		if changed {
			state.networks, state.version = maps[host], at.version()
			p.hub.sendAddresses(host, &godwitv1.AddressMap{Version: state.version, Networks: state.networks})
		}
		state.revision = at.revision
		if state.acked >= state.version {
			state.applied = at.revision
		}
	}
	p.release()
}

func sameNetworks(a, b []*godwitv1.NetworkMap) bool {
	return slices.EqualFunc(a, b, func(a, b *godwitv1.NetworkMap) bool { return proto.Equal(a, b) })
}

// connected sends a new session everything.
func (p *addressPusher) connected(host fleet.HostName) {
	p.mu.Lock()
	if before := p.hosts[host]; before != nil && before.giveUp != nil {
		before.giveUp.Stop()
	}
	p.hosts[host] = &informed{connected: true}
	p.mu.Unlock()
	p.push()
}

// disconnected lets the host be waited for until it counts as gone. When it
// returns it is sent everything.
func (p *addressPusher) disconnected(host fleet.HostName) {
	p.mu.Lock()
	p.lose(host, goneAfter)
	p.mu.Unlock()
	p.push() // one that takes part in nothing is not waited for
}

// lose notes that a host has no session, and will be gone after that time. It
// must be called with mu held.
func (p *addressPusher) lose(host fleet.HostName, after time.Duration) {
	state := p.hosts[host]
	state.connected, state.gone = false, after <= 0
	state.giveUp = time.AfterFunc(after, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.hosts[host] == state {
			state.gone = true
			p.release()
		}
	})
}

// ack notes that a host has applied a version.
func (p *addressPusher) ack(host fleet.HostName, version int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := p.hosts[host]
	if state == nil || !state.connected {
		return
	}
	state.acked = max(state.acked, version)
	if state.version != 0 && state.acked >= state.version {
		state.applied = state.revision
	}
	p.release()
}

// WhenApplied calls done, in a goroutine of its own, once every host that takes
// part in a network has the addresses as of that revision of the store, or of a
// later one, or is gone; done is given those that are and have not. The
// revision must be that of a commit that changed a migration or a VM.
func (p *addressPusher) WhenApplied(revision int64, done func(without []fleet.HostName)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.waiters = append(p.waiters, waiter{revision: revision, done: done})
	p.release()
}

// release must be called with mu held.
func (p *addressPusher) release() {
	if len(p.waiters) == 0 {
		return
	}
	reached := p.revision
	for _, state := range p.hosts {
		if !state.gone {
			reached = min(reached, state.applied)
		}
	}
	p.waiters = slices.DeleteFunc(p.waiters, func(w waiter) bool {
		if w.revision > reached {
			return false
		}
		go w.done(p.behind(w.revision))
		return true
	})
}

// behind lists, by name, the hosts that do not have the addresses as of a
// revision. It must be called with mu held.
func (p *addressPusher) behind(revision int64) (hosts []fleet.HostName) {
	for host, state := range p.hosts {
		if state.applied < revision {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return hosts
}
