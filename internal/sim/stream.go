package sim

import "time"

// stream is the copy from one QEMU to another.
type stream struct {
	*world
	source, target *emulator
	pass           int
	left           float64 // bytes of this pass
	began          time.Duration
	stalled        time.Duration // so far
	broken         bool
	last           time.Duration // when the guest stopped; zero before
	done           bool
}

// transferStalls is how long a connection may be without progress before one end
// takes it for broken.
const transferStalls = 8 * time.Second

// stallStep is the pause between looks at a connection that stalls.
const stallStep = 250 * time.Millisecond

// sendTo begins the copy to whoever listens on a port of a host.
func (q *emulator) sendTo(to *host, port uint16) error {
	return q.command(func() error {
		target := to.listens(port)
		if target == nil || !q.connects(q.m.host.node, to.node) {
			return silent("connect")
		}
		s := &stream{world: q.world, source: q, target: target}
		q.stream, target.stream, q.out = s, s, active
		s.begin(q.m.vm.memory)
		return nil
	})
}

// bandwidth of the link between the hosts, in bytes per second.
func (s *stream) bandwidth() float64 { return s.world.bandwidth / s.world.throttle }

// after does something once an amount has gone over, if it ever does.
func (s *stream) after(d time.Duration, do func()) {
	s.at(nil, d, func() {
		switch {
		case s.broken || s.done:
		case s.source.hung() || s.target.hung() || !s.connects(s.source.m.host.node, s.target.m.host.node):
			if s.stalled += stallStep; s.stalled > transferStalls {
				s.breakOff()
				return
			}
			s.after(stallStep, do)
		default:
			s.stalled = 0
			do()
		}
	})
}

func (s *stream) costs(bytes float64) time.Duration {
	return time.Duration(bytes / s.bandwidth() * float64(time.Second))
}

// begin sends one pass. What the guest writes meanwhile is the next.
func (s *stream) begin(bytes float64) {
	before := s.left
	s.pass++
	s.left, s.began = bytes, s.now
	s.source.say(news{kind: passBegun, pass: s.pass, left: bytes, before: before, cost: s.costs(bytes)})
	if s.unheld && s.pass > 1 && s.costs(bytes) <= switchCost && s.one(2) {
		s.source.halt()
		return
	}
	pass := s.pass
	s.after(max(s.costs(bytes), time.Millisecond), func() {
		if pass == s.pass && s.last == 0 {
			s.begin(s.dirty())
		}
	})
}

// dirty is what was written since the pass began.
func (s *stream) dirty() float64 {
	return min(s.source.m.vm.memory, s.source.m.vm.dirties*(s.now-s.began).Seconds())
}

// finishPages sends what is left after the stop.
func (s *stream) finishPages() {
	s.last = s.now
	s.after(max(s.costs(s.left+s.dirty()), time.Millisecond), func() {
		s.source.out = preSwitchover
		s.source.say(news{kind: preSwitched})
	})
}

// sendDevices is the end: the target has everything a moment before the source
// knows that.
func (s *stream) sendDevices() {
	s.after(s.between(4*time.Millisecond, 20*time.Millisecond), func() {
		s.target.in, s.target.count = loaded, s.source.count
		if s.bug(Careless) {
			s.target.count -= min(s.target.count, int((s.last-s.began).Seconds()*blocksPerSecond)+1)
		}
		s.target.say(news{kind: stateLoaded})
		s.after(s.ackTime(), func() {
			s.done = true
			s.source.out, s.source.stream, s.target.stream = completed, nil, nil
			s.source.say(news{kind: copyCompleted})
		})
	})
}

// ackTime is how long the target's word takes that it has everything. Where nobody
// holds the source this is the time in which the copy must not break, so it does.
func (s *stream) ackTime() time.Duration {
	if !s.unheld {
		return s.latency()
	}
	if s.harmful && s.one(20) {
		s.faults[StreamCut]++
		s.tell("FAULT: %s, before the source has the target's word", StreamCut)
		s.at(nil, s.between(0, 5*time.Millisecond), s.breakOff)
	}
	return s.latency() + s.between(0, 20*time.Millisecond)
}

// breakOff ends the copy where it is. A target that has everything keeps it.
func (s *stream) breakOff() {
	if s.broken || s.done {
		return
	}
	s.broken = true
	s.source.stream, s.target.stream = nil, nil
	if s.source.alive {
		s.source.out = failed
		s.source.say(news{kind: copyFailed})
		if s.source.byItself {
			s.source.runOn()
		}
	}
	if s.target.alive && s.target.in == waiting {
		s.target.in = failed
		s.target.say(news{kind: stateBroke})
	}
}
