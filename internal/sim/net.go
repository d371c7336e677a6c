package sim

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// node is a place in the network: the store, a server, a host.
type node struct {
	index int
	name  string
}

// wires says which way messages pass. Cut is one way: what a sends does not
// reach b.
type wires struct {
	*loop
	cut   [][]bool
	delay time.Duration // of a slow network, beside the usual
}

func newWires(l *loop, nodes int) *wires {
	w := &wires{loop: l, cut: make([][]bool, nodes)}
	for i := range w.cut {
		w.cut[i] = make([]bool, nodes)
	}
	return w
}

func (w *wires) passes(from, to *node) bool { return from == to || !w.cut[from.index][to.index] }

// both ways, as a connection needs it.
func (w *wires) connects(a, b *node) bool { return w.passes(a, b) && w.passes(b, a) }

func (w *wires) latency() time.Duration {
	return w.between(100*time.Microsecond, 600*time.Microsecond) + w.delay
}

// heal lets everything pass.
func (w *wires) heal() {
	for i := range w.cut {
		clear(w.cut[i])
	}
}

// reply is what a call gives.
type reply struct {
	value any
	err   error
}

func silent(op string) error {
	return &fleet.Error{Code: fleet.Unavailable, Op: op, Cause: "no answer"}
}

// call has a process at another node handle something, and waits for the answer
// or the end of the time. Either way may be lost; the handler may run though
// nobody hears of it, or twice.
func (w *wires) call(from, to *node, at *proc, within time.Duration, op string, handle func() (any, error)) (any, error) {
	got := w.await(func(done func(any)) {
		w.at(w.task.proc, within, func() { done(reply{nil, silent(op)}) })
		arrive := func() {
			if !w.passes(from, to) || !at.up {
				return
			}
			w.at(at, 0, func() {
				w.spawn(at, func() {
					value, err := handle()
					w.at(nil, w.latency(), func() {
						if w.passes(to, from) {
							done(reply{value, err})
						}
					})
				})
			})
		}
		w.at(nil, w.latency(), arrive)
		if w.one(200) {
			w.at(nil, w.latency()+w.between(0, time.Second), arrive)
		}
	}).(reply)
	return got.value, got.err
}

// pipe is one direction of a connection: in order, and nothing is lost as long
// as the connection lives.
type pipe struct {
	*wires
	from, to *node
	at       *proc
	open     func() bool
	ready    func() bool
	take     func(any)
	waiting  []any
	moving   bool
}

func (p *pipe) send(message any) {
	p.waiting = append(p.waiting, message)
	if !p.moving {
		p.moving = true
		p.wires.at(nil, p.latency(), p.deliver)
	}
}

// resendAfter is the pause of a sender whose segments get no acknowledgement.
const resendAfter = 200 * time.Millisecond

func (p *pipe) deliver() {
	switch {
	case !p.open() || !p.at.up:
		p.waiting, p.moving = nil, false
		return
	case !p.ready():
		p.wires.at(nil, p.latency(), p.deliver)
		return
	case !p.connects(p.from, p.to):
		p.wires.at(nil, resendAfter, p.deliver)
		return
	}
	arrived := p.waiting
	p.waiting, p.moving = nil, false
	for _, message := range arrived {
		p.wires.at(p.at, 0, func() {
			if p.open() {
				p.take(message)
			}
		})
	}
}
