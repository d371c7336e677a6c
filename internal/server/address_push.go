package server

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// addressPusher keeps every connected host informed of the addresses that
// concern it, and knows which of them have applied what. A host whose part of
// the map did not change is not bothered: what it has is the newer state, too.
type addressPusher struct {
	mirror *mirror
	hub    *hub
	wake   chan struct{}

	mu       sync.Mutex
	revision int64 // of the store, as of which the maps were last made
	hosts    map[fleet.HostName]*informed
	waiters  []waiter
}

// informed is what a connected host was sent.
type informed struct {
	networks []*godwitv1.NetworkMap
	version  int64 // of the message that carried them; 0 before the first
	revision int64 // of the store; networks are still right as of it
	applied  int64 // the host has said that it has what is right as of it; 0 for nothing
	acked    int64 // the newest version that it has applied
}

type waiter struct {
	revision int64
	done     func()
}

func newAddressPusher(m *mirror, h *hub) *addressPusher {
	return &addressPusher{mirror: m, hub: h, wake: make(chan struct{}, 1), hosts: map[fleet.HostName]*informed{}}
}

// Changed says that the mirror has changed; any number of calls may lead to
// one push. It does not block.
func (p *addressPusher) Changed() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run pushes after changes until ctx ends.
func (p *addressPusher) run(ctx context.Context) {
	for {
		select {
		case <-p.wake:
			p.push()
		case <-ctx.Done():
			return
		}
	}
}

func (p *addressPusher) push() {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps, at := p.mirror.addressMaps()
	p.revision = at.revision
	for host, state := range p.hosts {
		if state.version == 0 || !sameNetworks(state.networks, maps[host]) {
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
	p.hosts[host] = &informed{}
	p.mu.Unlock()
	p.push()
}

// disconnected lets nobody wait for the host any longer: it is sent everything
// when it returns.
func (p *addressPusher) disconnected(host fleet.HostName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.hosts, host)
	p.release()
}

// ack notes that a host has applied a version.
func (p *addressPusher) ack(host fleet.HostName, version int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := p.hosts[host]
	if state == nil {
		return
	}
	state.acked = max(state.acked, version)
	if state.version != 0 && state.acked >= state.version {
		state.applied = state.revision
	}
	p.release()
}

// WhenApplied calls done, in a goroutine of its own, once every connected host
// has the addresses as of that revision of the store, or of a later one. The
// revision must be that of a commit that changed a migration or a VM.
func (p *addressPusher) WhenApplied(revision int64, done func()) {
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
		reached = min(reached, state.applied)
	}
	p.waiters = slices.DeleteFunc(p.waiters, func(w waiter) bool {
		if w.revision > reached {
			return false
		}
		go w.done()
		return true
	})
}
