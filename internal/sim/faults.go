package sim

import (
	"slices"
	"time"
)

// Fault is a kind of harm.
type Fault string

// The kinds.
const (
	ServerCrash Fault = "server crashes"
	ServerHang  Fault = "server hangs"
	ClockJump   Fault = "server's clock jumps"
	AgentCrash  Fault = "agent crashes"
	AgentHang   Fault = "agent hangs"
	HostCrash   Fault = "host loses power"
	QEMUKill    Fault = "QEMU is killed"
	QEMUHang    Fault = "QEMU hangs"
	CutOneWay   Fault = "partition, one way"
	CutBothWays Fault = "partition, both ways"
	Isolation   Fault = "node cut off from all"
	LinkSlow    Fault = "network is slow"
	StoreAway   Fault = "store has no leader"
	StoreSlow   Fault = "store is slow"
	StoreFull   Fault = "store is full"
	DiskSlow    Fault = "host's disk is slow"
	DiskFull    Fault = "host's disk is full"
	StreamCut   Fault = "memory stream is cut"
)

// Faults lists the kinds.
func Faults() []Fault {
	return []Fault{
		ServerCrash, ServerHang, ClockJump, AgentCrash, AgentHang, HostCrash, QEMUKill, QEMUHang, CutOneWay, CutBothWays,
		Isolation, LinkSlow, StoreAway, StoreSlow, StoreFull, DiskSlow, DiskFull, StreamCut,
	}
}

// rare are those after which a VM is down, so that nothing more is learned: two of
// three are an agent that crashes instead.
var rare = []Fault{HostCrash, QEMUKill}

// harm does harm now and then, until a time.
func (w *world) harm(until time.Duration) {
	w.at(nil, w.between(time.Second, 14*time.Second), func() {
		if w.now >= until {
			return
		}
		w.hurt(w.anyFault())
		w.harm(until)
	})
}

func (w *world) anyFault() Fault {
	if w.losing && w.lost == nil && w.one(10) {
		return HostCrash
	}
	all := Faults()
	f := all[w.chance.IntN(len(all))]
	if slices.Contains(rare, f) && !w.one(3) {
		return AgentCrash
	}
	return f
}

// delicate is called where a switch begins: that is when harm tells most.
func (w *world) delicate() {
	if !w.harmful || !w.one(3) {
		return
	}
	for range 1 + w.chance.IntN(2) {
		f := w.anyFault()
		w.at(nil, w.between(0, 1500*time.Millisecond), func() {
			if w.harmful {
				w.hurt(f)
			}
		})
	}
}

// hurt does harm of one kind to a victim chosen by chance.
func (w *world) hurt(f Fault) {
	w.faults[f]++
	s, h := w.servers[w.chance.IntN(len(w.servers))], w.hosts[w.chance.IntN(len(w.hosts))]
	w.tell("FAULT: %s (%s, %s)", f, s.node.name, h.name)
	switch f {
	case ServerCrash:
		w.crashServer(s, w.between(time.Second, 10*time.Second))
	case ServerHang:
		s.proc.hangs = w.now + w.between(time.Second, 12*time.Second)
	case ClockJump:
		w.jump(s)
	case AgentCrash:
		w.crashAgent(h, w.between(100*time.Millisecond, 5*time.Second))
	case AgentHang:
		h.agent.proc.hangs = w.now + w.between(time.Second, 9*time.Second)
	case HostCrash:
		w.crashHost(h, w.between(8*time.Second, 40*time.Second))
	case QEMUKill, QEMUHang, StreamCut:
		w.hurtQEMU(f, h)
	case CutOneWay, CutBothWays, Isolation:
		w.partition(f)
	case LinkSlow:
		w.slowDown(w.between(3*time.Second, 20*time.Second))
	case StoreAway:
		w.etcd.away = w.now + w.between(500*time.Millisecond, 9*time.Second)
	case StoreSlow:
		w.etcd.slow = w.between(50*time.Millisecond, 6*time.Second)
		w.at(nil, w.between(time.Second, 15*time.Second), func() { w.etcd.slow = 0 })
	case StoreFull:
		w.etcd.full = w.now + w.between(time.Second, 30*time.Second)
	case DiskSlow:
		h.slow = w.between(20*time.Millisecond, 2*time.Second)
		w.at(nil, w.between(time.Second, 15*time.Second), func() { h.slow = 0 })
	case DiskFull:
		h.full = w.now + w.between(time.Second, 15*time.Second)
	}
}

func (w *world) crashServer(s *server, down time.Duration) {
	if s.proc.up {
		s.crash()
		w.at(nil, down, func() {
			if !s.proc.up {
				s.start()
			}
		})
	}
}

// jump sets a server's clock: mostly by seconds, now and then by minutes.
func (w *world) jump(s *server) {
	most := 10 * time.Second
	if w.one(10) {
		most = 10 * time.Minute
	}
	s.skew = w.between(-most, most)
}

func (w *world) crashAgent(h *host, down time.Duration) {
	a := h.agent
	if !a.proc.up {
		return
	}
	w.end(a.proc)
	a.crashed()
	w.at(nil, down, func() {
		if h.up && !a.proc.up {
			a.start()
		}
	})
}

func (w *world) crashHost(h *host, down time.Duration) {
	switch {
	case !h.up:
	case w.losing && w.lost == nil && w.one(2):
		w.loseHost(h)
	default:
		h.crash()
		w.at(nil, down, func() {
			if !h.up {
				h.boot()
			}
		})
	}
}

func (w *world) hurtQEMU(f Fault, h *host) {
	for _, m := range h.machines {
		if m.q.ended() {
			continue
		}
		switch {
		case f == QEMUKill:
			m.killed = true
			m.q.die()
		case f == QEMUHang:
			m.q.hang(w.between(time.Second, 8*time.Second))
		case m.q.stream != nil:
			m.q.stream.breakOff()
		default:
			continue
		}
		return
	}
}

// nodes lists all places in the network.
func (w *world) nodes() (all []*node) {
	all = append(all, w.etcd.node)
	for _, s := range w.servers {
		all = append(all, s.node)
	}
	for _, h := range w.hosts {
		all = append(all, h.node)
	}
	return all
}

// partition cuts the way between two nodes, or between one and all others.
func (w *world) partition(f Fault) {
	all := w.nodes()
	a, b := all[w.chance.IntN(len(all))], all[w.chance.IntN(len(all))]
	others := []*node{b}
	if f == Isolation {
		others = all
	}
	set := func(cut bool) {
		for _, other := range others {
			if other == a {
				continue
			}
			w.cut[a.index][other.index] = cut
			if f != CutOneWay {
				w.cut[other.index][a.index] = cut
			}
		}
	}
	w.tell("       between %s and %s", a.name, b.name)
	set(true)
	w.at(nil, w.between(500*time.Millisecond, 20*time.Second), func() { set(false) })
}

func (w *world) slowDown(d time.Duration) {
	w.delay, w.throttle = w.between(5*time.Millisecond, 150*time.Millisecond), 20
	w.at(nil, d, w.ease)
}

// ease makes the network fast again bit by bit, as queues drain: so that nothing
// overtakes what was sent long before.
func (w *world) ease() {
	w.throttle = 1
	if w.delay /= 2; w.delay > time.Millisecond {
		w.at(nil, 300*time.Millisecond, w.ease)
		return
	}
	w.delay = 0
}

// mend ends all harm that is done, and does no more. What hangs or is slow
// comes back by itself.
func (w *world) mend() {
	w.tell("no more faults")
	w.harmful = false
	w.heal()
	w.etcd.away, w.etcd.slow, w.etcd.full = 0, 0, 0
	for _, s := range w.servers {
		s.skew = 0
		if !s.proc.up {
			s.start()
		}
	}
	for _, h := range w.hosts {
		h.full, h.slow = 0, 0
		switch {
		case h == w.lost:
		case !h.up:
			h.boot()
		case !h.agent.proc.up:
			h.agent.start()
		}
	}
}
