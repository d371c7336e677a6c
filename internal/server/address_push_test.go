package server

import (
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// push is an addressPusher whose mirror shows what the test wants, with hosts
// that get no messages and say what the test wants.
type push struct {
	*addressPusher
	t    *testing.T
	show picture
}

// newPush shows vm1 on a, vm2 on c and nothing on b, all of network blue, with
// vm1 moving from a to b.
func newPush(t *testing.T) *push {
	m := newMirror(tables{}, slog.New(slog.DiscardHandler))
	p := &push{t: t, addressPusher: newAddressPusher(m, newHub()), show: testPicture()}
	p.show = p.show.with("vm1", "a", fleet.VMRunning, "blue").with("vm2", "c", fleet.VMRunning, "blue").withMove("vm1", "a", "b", false)
	m.vms, m.hosts, m.networks, m.migrations = p.show.vms, p.show.hosts, p.show.networks, p.show.moves
	m.at = position{revision: 10}
	return p
}

// joins opens a host's session; it acknowledges what it is sent.
func (p *push) joins(hosts ...fleet.HostName) {
	for _, host := range hosts {
		p.connected(host)
		p.acks(host)
	}
}

func (p *push) acks(hosts ...fleet.HostName) {
	for _, host := range hosts {
		p.ack(host, p.mirror.at.version())
	}
}

// moves makes b the owner of vm1, and gives who is not waited for once that is
// known.
func (p *push) moves() <-chan []fleet.HostName {
	p.show = p.show.with("vm1", "b", fleet.VMRunning, "blue")
	p.mirror.at.revision++
	known := make(chan []fleet.HostName, 1)
	p.WhenApplied(p.mirror.at.revision, func(without []fleet.HostName) { known <- without })
	p.push()
	return known
}

// check compares what has come by now.
func (p *push) check(when string, known <-chan []fleet.HostName, want bool, without ...fleet.HostName) {
	p.t.Helper()
	synctest.Wait()
	select {
	case got := <-known:
		if !want || !slices.Equal(got, without) {
			p.t.Errorf("%s: known without %v", when, got)
		}
	default:
		if want {
			p.t.Errorf("%s: not known", when)
		}
	}
}

// A host whose agent is away sends on by the map that it has.
func TestForwardingWaitsForHostsThatAreAway(t *testing.T) {
	const moment = time.Millisecond
	cases := []struct {
		name string
		play func(p *push)
	}{
		{"all are there", func(p *push) {
			p.joins("a", "b", "c")
			known := p.moves()
			p.acks("a", "b")
			p.check("c has not said", known, false)
			p.acks("c")
			p.check("c has said", known, true)
		}},
		{"one returns", func(p *push) {
			p.joins("a", "b", "c")
			p.disconnected("c")
			known := p.moves()
			p.acks("a", "b")
			time.Sleep(goneAfter - moment)
			p.check("c is away", known, false)
			p.connected("c")
			time.Sleep(goneAfter)
			p.check("c is back, and has not said", known, false)
			p.acks("c")
			p.check("c is back", known, true)
		}},
		{"one leaves before it has said", func(p *push) {
			p.joins("a", "b", "c")
			known := p.moves()
			p.acks("a", "b")
			p.disconnected("c")
			p.acks("c") // too late for this session
			p.check("c is away", known, false)
			time.Sleep(goneAfter + moment)
			p.check("c is gone", known, true, "c")
		}},
		{"one is gone already", func(p *push) {
			p.joins("a", "b", "c")
			p.disconnected("c")
			time.Sleep(goneAfter + moment)
			known := p.moves()
			p.check("the others have not said", known, false)
			p.acks("a", "b")
			p.check("c is gone", known, true, "c")
		}},
		{"one is away that has nothing to learn", func(p *push) {
			p.joins("a", "b", "c")
			p.disconnected("c")
			known := make(chan []fleet.HostName, 1)
			p.mirror.at.revision++
			p.WhenApplied(p.mirror.at.revision, func(without []fleet.HostName) { known <- without })
			p.push()
			p.check("its map is the same", known, true)
		}},
		{"one is away that takes part in nothing", func(p *push) {
			delete(p.show.vms, "vm2")
			p.joins("a", "b", "c")
			p.disconnected("c")
			known := p.moves()
			p.acks("a", "b")
			p.check("c sends nothing", known, true)
		}},
		{"the server was started again", func(p *push) {
			known := p.moves()
			p.check("nobody is here yet", known, false)
			p.joins("a", "b")
			p.check("c is not yet here", known, false)
			p.joins("c")
			p.check("all are here", known, true)
		}},
		{"and one is gone for good", func(p *push) {
			p.joins("a", "b")
			known := p.moves()
			p.acks("a", "b")
			time.Sleep(goneAfter - moment)
			p.check("c may come", known, false)
			time.Sleep(2 * moment)
			p.check("c is gone", known, true, "c")
		}},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.play(newPush(t)) })
		})
	}
}

// A server that leads again has sent the hosts nothing yet, whatever it had sent
// them before.
func TestForwardingWaitsInALaterTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPush(t)
		p.joins("a", "b", "c")
		known := p.moves()
		p.acks("a", "b")
		p.check("c has not said", known, false)
		for _, host := range []fleet.HostName{"a", "b", "c"} { // the sessions end with the term
			p.disconnected(host)
		}
		p.begin()
		again := make(chan []fleet.HostName, 1)
		p.WhenApplied(p.mirror.at.revision, func(without []fleet.HostName) { again <- without })
		p.check("before anybody was told", again, false)
		p.joins("a", "b")
		p.check("c was not told", again, false)
		p.joins("c")
		p.check("all were told", again, true)
	})
}
