package sim

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lifecycle"
)

const (
	heartbeat    = 2 * time.Second
	missedBeats  = 3
	helloWithin  = 10 * time.Second
	sessionPause = 100 * time.Millisecond
	pauseMax     = 5 * time.Second
)

// session is one stream between an agent and the server that leads.
type session struct {
	*world
	host              *host
	server            *server
	number            uint64 // of the server's
	served            bool   // at the server
	met               bool   // by the agent, which has heard the answer to its hello
	toAgent, toServer *pipe
	inbox             mailbox[any]
	finished          bool
	whenFinished      []func(any)
	heardAgent        time.Duration // by the server
	heardServer       time.Duration // by the agent
}

// beat is a heartbeat.
type beat struct{}

// addressMap is what an agent is told of where VMs are.
type addressMap struct {
	version int64
	hosts   []*host // by VM
}

type applied struct{ version int64 }

func newSession(h *host, s *server) *session {
	s.opened++
	one := &session{world: h.world, host: h, server: s, number: s.opened, served: true, heardAgent: h.now, heardServer: h.now}
	one.toAgent = &pipe{wires: h.wires, from: s.node, to: h.node, at: h.agent.proc,
		ready: func() bool { return one.met }, open: one.openAtAgent, take: one.agentHears}
	one.toServer = &pipe{wires: h.wires, from: h.node, to: s.node, at: s.proc,
		ready: func() bool { return true }, open: func() bool { return one.served }, take: one.serverHears}
	return one
}

// openAtAgent: until the agent has heard that it has the session, what follows
// waits behind that.
func (one *session) openAtAgent() bool {
	if !one.met {
		return one.served
	}
	return one.host.agent.session == one
}

// greet opens a session at the server that leads. It runs at the server.
func (s *server) greet(h *host, hello *godwitv1.Hello) (any, error) {
	if s.life == nil {
		return s.serverNamed(s.etcd.leads()), nil
	}
	one := newSession(h, s)
	older := s.sessions[h.name]
	s.sessions[h.name] = one
	if older != nil {
		older.endAtServer()
		s.sessions[h.name] = one
		if !older.finished {
			s.await(func(done func(any)) { older.whenFinished = append(older.whenFinished, done) })
		}
	}
	at, err := s.arrive(h, hello)
	if err != nil || !one.served {
		one.endAtServer()
		one.finish()
		return nil, silent("open session")
	}
	s.spawn(s.proc, func() { one.serve(at, hello) })
	return one, nil
}

// serve takes what the host has, and then its reports, one after the other, until
// the session ends.
func (one *session) serve(at lifecycle.Arrival, hello *godwitv1.Hello) {
	s, host := one.server, one.host.name
	s.addresses.connected(one)
	s.lifecycle.Connected(context.Background(), host, at, hello)
	for _, instance := range hello.GetInstances() {
		s.noteEnding(host, instance)
	}
	s.moves.HostConnected(host)
	one.heardAgent = one.now
	one.beatServer()
	for {
		message, some := one.inbox.next(one.loop, func() bool { return !one.served })
		if !some {
			break
		}
		switch said := message.(type) {
		case *godwitv1.Report:
			one.server.hear(one.host.name, said)
		case applied:
			one.server.addresses.acked(one, said.version)
		}
	}
	one.finish()
}

func (one *session) finish() {
	one.finished = true
	for _, done := range one.whenFinished {
		done(nil)
	}
}

func (one *session) serverHears(message any) {
	one.heardAgent = one.now
	if _, beats := message.(beat); beats {
		return
	}
	one.inbox.put(message)
}

// endAtServer closes the server's end; the agent hears of it if it can.
func (one *session) endAtServer() {
	s := one.server
	if !one.served {
		return
	}
	one.served = false
	if s.sessions[one.host.name] == one {
		delete(s.sessions, one.host.name)
	}
	s.addresses.disconnected(one)
	one.inbox.ring()
	one.lostBy(s.node)
}

// lostBy: the other end hears of it when a process is gone, if it can.
func (one *session) lostBy(n *node) {
	h, s := one.host, one.server
	one.at(nil, one.latency(), func() {
		switch {
		case !one.connects(h.node, s.node) || !h.up && n == h.node:
		case n == s.node:
			one.at(h.agent.proc, 0, one.endAtAgent)
		default:
			one.at(s.proc, 0, one.endAtServer)
		}
	})
}

func (one *session) endAtAgent() {
	a := one.host.agent
	if a.session == one {
		a.session, a.lostSession = nil, a.now
		if a.noSession != nil {
			a.noSession(nil)
		}
	}
}

// beatServer and beatAgent send heartbeats and look for those of the other end.
func (one *session) beatServer() {
	switch {
	case !one.served:
		return
	case one.now-one.heardAgent > missedBeats*heartbeat:
		one.endAtServer()
		return
	}
	one.toAgent.send(beat{})
	one.at(one.server.proc, heartbeat, one.beatServer)
}

func (one *session) beatAgent() {
	switch {
	case one.host.agent.session != one:
		return
	case one.now-one.heardServer > missedBeats*heartbeat:
		one.endAtAgent()
		one.lostBy(one.host.node)
		return
	}
	one.toServer.send(beat{})
	one.at(one.host.agent.proc, heartbeat, one.beatAgent)
}

func (one *session) agentHears(message any) {
	a := one.host.agent
	one.heardServer = one.now
	switch said := message.(type) {
	case *godwitv1.Command:
		a.command(said)
	case addressMap:
		a.apply(one, said)
	}
}

// keepSession holds a session for as long as the agent lives.
func (a *agent) keepSession() {
	wait := sessionPause
	for tries := 1; ; tries++ {
		s, hello := a.servers[a.server%len(a.servers)], a.hello()
		answer, err := a.call(a.node, s.node, s.proc, helloWithin, "hello", func() (any, error) { return s.greet(a.host, hello) })
		switch got := answer.(type) {
		case *session:
			a.serveSession(got)
			wait, tries = sessionPause, 1
		case *server:
			if err == nil && got != nil {
				a.server = got.node.index - 1
				a.sleep(10 * time.Millisecond)
				continue
			}
		}
		a.server++
		if tries%len(a.servers) == 0 {
			a.sleep(wait + a.between(0, wait/2))
			wait = min(2*wait, pauseMax)
		}
	}
}

// serveSession serves a session to its end.
func (a *agent) serveSession(one *session) {
	a.tell("%s has a session with %s", a.proc.name, one.server.proc.name)
	a.session, one.met, one.heardServer, a.sessionBegan = one, true, a.now, a.now
	for _, k := range a.keepers {
		for _, report := range k.facts {
			a.say(report)
		}
	}
	one.beatAgent()
	if a.session == one {
		a.await(func(done func(any)) { a.noSession = done })
	}
	a.noSession = nil
}

// apply sets the host's routes. One that is overtaken says nothing new.
func (a *agent) apply(one *session, m addressMap) {
	a.spawn(a.proc, func() {
		a.sleep(a.between(time.Millisecond, 30*time.Millisecond))
		if m.version >= a.mapped {
			a.mapped = m.version
			copy(a.routes, m.hosts)
			a.routed = a.now
		}
		for _, v := range a.vms {
			a.reapply(v)
		}
		if a.session == one {
			one.toServer.send(applied{m.version})
		}
	})
}
