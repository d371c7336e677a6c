package network

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// fromGuest tells the frames of the senders apart by their numbers.
func fromGuest(last byte, sequence uint32) uint32 { return uint32(last)<<24 | sequence }

// sender is a guest that sends frames to guest 1 from a host.
type sender struct {
	host int
	last byte
	g    guest
	load *load
	all  *load // of frames to all; nil for none
}

// Broadcasts are numbered on from here: those of sendGroups, and those of the load.
const (
	broadcasts       = 1 << 20
	steadyBroadcasts = 1 << 21
)

func (s *sender) broadcast(t *testing.T, sequence uint32) {
	s.g.send(t, numbered(broadcast, mac(s.last), fromGuest(s.last, broadcasts+sequence), 60))
}

func (s *sender) end() {
	s.load.end()
	if s.all != nil {
		s.all.end()
	}
}

// move is a hand-over of guest 1 from host 0 to host 1, whose guests there and at a
// third host send to it.
type move struct {
	*lab
	source, target *Tap
	senders        []*sender
	runs           *Tap     // of the guest, where it runs
	guest          *reader  // of that
	got            []uint32 // what it has read at the source
	groups         uint32   // frames to all that each sender has sent
}

const moveTunnel = 9

// The taps of the guests, by their hosts; senders are guests 7, 8 and 9.
func senderTap(host int) (name string, last byte) { return fmt.Sprintf("gwts%d", host), byte(7 + host) }

// begin starts the load; tapFor makes a tap that is in the network.
func (m *move) begin(t *testing.T, tapFor func(host int, name string, last byte, g Gate) *Tap, perSecond, size int) {
	t.Helper()
	m.source = tapFor(0, "gwta", 1, gate(Pass))
	m.target = tapFor(1, "gwtb", 1, Gate{Mode: Closed, Epoch: 2})
	must(t, m.hosts[0].OpenTunnel(moveTunnel, m.source))
	must(t, m.hosts[1].OpenTunnel(moveTunnel, m.target))
	must(t, m.target.Sacrifice())
	must(t, m.target.SetGate(Gate{Mode: TunnelOnly, Epoch: 2}))
	m.runOn(t, m.source)
	for host := range m.hosts {
		name, last := senderTap(host)
		s := &sender{host: host, last: last, g: guestOf(tapFor(host, name, last, gate(Pass)))}
		s.load = steadily(perSecond, func(sequence uint32) {
			s.g.send(t, numbered(mac(1), mac(last), fromGuest(last, sequence), size))
		})
		m.senders = append(m.senders, s)
	}
	waitCount(t, uint32(perSecond/4), m.source)
}

// sendToAll has every sender send frames to all from now on.
func (m *move) sendToAll(t *testing.T) {
	t.Helper()
	for _, s := range m.senders {
		s.all = steadily(1000, func(sequence uint32) { s.broadcast(t, steadyBroadcasts-broadcasts+sequence) })
	}
}

// runOn has the guest run at a tap.
func (m *move) runOn(t *testing.T, tap *Tap) { m.runs, m.guest = tap, guestOf(tap).run(t) }

// switchOver is steps 3 to 6 of doc.go.
func (m *move) switchOver(t *testing.T) {
	t.Helper()
	m.leave(t)
	must(t, m.target.SetGate(Gate{Mode: Settling, Epoch: 2}))
	m.runOn(t, m.target)
}

// leave is all of it before the commit.
func (m *move) leave(t *testing.T) {
	t.Helper()
	away := Gate{Mode: Leaving, Epoch: 1, Tunnel: moveTunnel, Remote: m.underlay[1]}
	must(t, m.source.SetGate(away))
	must(t, m.source.WaitEmpty(t.Context()))
	m.got = m.guest.end()
	away.Mode = Redirect
	must(t, m.source.SetGate(away))
	_, err := m.source.Drain(t.Context())
	must(t, err)
	must(t, m.target.SetGate(Gate{Mode: Arriving, Epoch: 2}))
	must(t, m.target.Claim())
}

// sendGroups has every sender send frames to all.
func (m *move) sendGroups(t *testing.T) {
	t.Helper()
	const count = 20
	for _, s := range m.senders {
		for range count {
			s.broadcast(t, m.groups)
			m.groups++
		}
		m.groups -= count
	}
	m.groups += count
}

// check ends the senders, and checks that each frame of theirs came once.
func (m *move) check(t *testing.T) {
	t.Helper()
	for _, s := range m.senders {
		s.end()
	}
	waitFor(t, "everything in the guest's tap", func() bool {
		passed := func() uint64 {
			counters, err := m.runs.Counters()
			must(t, err)
			return counters.ToGuestPassed
		}
		before := passed()
		must(t, m.runs.WaitEmpty(t.Context()))
		return passed() == before
	})
	times := map[uint32]int{}
	for _, sequence := range slices.Concat(m.got, m.guest.end()) {
		times[sequence]++
	}
	for _, s := range m.senders {
		once := func(what string, first, count uint32) {
			var lost, doubled int
			for sequence := range count {
				switch n := times[fromGuest(s.last, first+sequence)]; {
				case n == 0:
					lost++
				case n > 1:
					doubled++
				}
			}
			if lost+doubled > 0 {
				t.Errorf("of %d %s from host %d %d were lost and %d doubled", count, what, s.host, lost, doubled)
			}
		}
		once("frames", 0, s.load.sent)
		once("frames to all", broadcasts, m.groups)
		if s.all != nil {
			once("frames to all of the load", steadyBroadcasts, s.all.sent)
		}
	}
}

// finish ends the forwarding, as the agents do.
func (m *move) finish(t *testing.T) {
	t.Helper()
	must(t, m.source.Remove())
	must(t, m.hosts[1].CloseTunnel(moveTunnel))
	must(t, m.target.SetGate(Gate{Mode: Pass, Epoch: 2}))
}

// quiet: for a while nothing has come to the source from outside of its host.
func (m *move) quiet(t *testing.T) bool {
	t.Helper()
	ago, ever, err := m.source.LastRedirect()
	must(t, err)
	return ever && ago > 200*time.Millisecond
}
