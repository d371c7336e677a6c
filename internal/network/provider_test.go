package network

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	providerBridge = "br0"
	jumbo          = 9000
)

// fabric is the physical network of a lab: a switch that learns, and on each host a
// bridge of the operator's with the uplink to it.
type fabric struct {
	*lab
	links *netlink.Handle // of the switch
}

func newFabric(t *testing.T, hosts, mtu int) fabric {
	t.Helper()
	f := fabric{lab: newLab(t, hosts, underlay4)}
	space := newNamespace(t)
	f.links = handleIn(t, space)
	attrs := netlink.LinkAttrs{Name: "switch", MTU: mtu}
	must(t, f.links.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	hub, err := f.links.LinkByName("switch")
	must(t, err)
	must(t, f.links.LinkSetUp(hub))
	for i, space := range f.spaces {
		links := handleIn(t, space)
		attrs := netlink.LinkAttrs{Name: fmt.Sprintf("port%d", i), MTU: mtu, MasterIndex: hub.Attrs().Index}
		must(t, f.links.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "uplink", PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(space.fd)}))
		port, err := f.links.LinkByName(attrs.Name)
		must(t, err)
		must(t, f.links.LinkSetUp(port))
		must(t, links.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: providerBridge, MTU: mtu}}))
		bridge, err := links.LinkByName(providerBridge)
		must(t, err)
		uplink, err := links.LinkByName("uplink")
		must(t, err)
		must(t, links.LinkSetMaster(uplink, bridge))
		must(t, links.LinkSetUp(uplink))
		must(t, links.LinkSetUp(bridge))
		f.awaitPort(t, i, uplink)
		waitFor(t, "the switch's port", func() bool {
			link, err := f.links.LinkByName(attrs.Name)
			must(t, err)
			return link.Attrs().OperState == netlink.OperUp
		})
	}
	return f
}

func (f fabric) awaitPort(t *testing.T, host int, link netlink.Link) {
	t.Helper()
	waitFor(t, "a port that forwards", func() bool {
		state, found, err := f.hosts[host].portState(link.Attrs().Index)
		must(t, err)
		return found && state == bridgeForwarding
	})
}

// providerTap makes a tap in the bridge of a host; one that passes has its address.
func (f fabric) providerTap(t *testing.T, host int, name string, last byte, g Gate) *Tap {
	t.Helper()
	tap := f.tap(t, host, TapConfig{Name: name, Network: "prod", Bridge: providerBridge, MAC: mac(last), Gate: g})
	must(t, tap.AwaitForwarding(t.Context()))
	if g.Mode == Pass {
		must(t, tap.Claim())
	}
	return tap
}

// fromGuest tells the frames of the senders apart by their numbers.
func fromGuest(last byte, sequence uint32) uint32 { return uint32(last)<<24 | sequence }

// sender is a guest that sends frames to guest 1 from a host.
type sender struct {
	host int
	last byte
	g    guest
	load *load
}

// broadcasts are numbered on from here.
const broadcasts = 1 << 20

func (s *sender) broadcast(t *testing.T, sequence uint32) {
	s.g.send(t, numbered(broadcast, mac(s.last), fromGuest(s.last, broadcasts+sequence), 60))
}

// move is a hand-over of guest 1 from host 0 to host 1 of a fabric, whose guests
// there and at a third host send to it.
type move struct {
	fabric
	source, target *Tap
	senders        []*sender
	guest          *reader  // where it runs
	got            []uint32 // what it has read at the source
	groups         uint32   // frames to all that each sender has sent
}

const moveTunnel = 9

func beginMove(t *testing.T, perSecond, size int) *move {
	t.Helper()
	m := &move{fabric: newFabric(t, 3, jumbo)}
	m.source = m.providerTap(t, 0, "gwta", 1, gate(Pass))
	m.target = m.providerTap(t, 1, "gwtb", 1, Gate{Mode: Closed, Epoch: 2})
	must(t, m.hosts[0].OpenTunnel(moveTunnel, m.source))
	must(t, m.hosts[1].OpenTunnel(moveTunnel, m.target))
	must(t, m.target.Sacrifice())
	must(t, m.target.SetGate(Gate{Mode: TunnelOnly, Epoch: 2}))
	must(t, m.source.Announce(nil))
	m.guest = guestOf(m.source).run(t)
	for host, last := range []byte{7, 8, 9} {
		s := &sender{host: host, last: last, g: guestOf(m.providerTap(t, host, fmt.Sprintf("gwts%d", host), last, gate(Pass)))}
		s.load = steadily(perSecond, func(sequence uint32) {
			s.g.send(t, numbered(mac(1), mac(last), fromGuest(last, sequence), size))
		})
		m.senders = append(m.senders, s)
	}
	waitCount(t, uint32(perSecond/4), m.source)
	return m
}

// switchOver is steps 3 to 6 of doc.go.
func (m *move) switchOver(t *testing.T) {
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
	must(t, m.target.SetGate(Gate{Mode: Settling, Epoch: 2}))
	m.guest = guestOf(m.target).run(t)
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

// finish ends the forwarding, as an agent does.
func (m *move) finish(t *testing.T) {
	t.Helper()
	waitFor(t, "nothing from outside at the source", func() bool {
		ago, ever, err := m.source.LastRedirect()
		must(t, err)
		return ever && ago > 200*time.Millisecond
	})
	yielded := make(chan error, 1)
	go func() { yielded <- m.source.Yield(t.Context()) }()
	waitFor(t, "the source's bridge to hear the guest elsewhere", func() bool {
		must(t, m.target.Announce(nil))
		return len(yielded) > 0
	})
	must(t, <-yielded)
	must(t, m.source.Remove())
	must(t, m.target.SetGate(Gate{Mode: Pass, Epoch: 2}))
}

// check ends the senders, and checks that each frame of theirs came once.
func (m *move) check(t *testing.T) {
	t.Helper()
	for _, s := range m.senders {
		s.load.end()
	}
	waitFor(t, "everything in the target's tap", func() bool {
		passed := func() uint64 {
			counters, err := m.target.Counters()
			must(t, err)
			return counters.ToGuestPassed
		}
		before := passed()
		must(t, m.target.WaitEmpty(t.Context()))
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
		if m.groups > 0 {
			once("frames to all", broadcasts, m.groups)
		}
	}
}

// A VM moves from bridge to bridge under load from everywhere, and nothing is lost or
// comes twice, until after the source's tap is gone.
func TestProviderHandOver(t *testing.T) {
	for _, test := range []struct {
		name            string
		perSecond, size int
	}{{"small frames", 4000, 60}, {"full frames", 2000, 1514}, {"jumbo frames", 1000, jumbo + 14}} {
		t.Run(test.name, func(t *testing.T) {
			m := beginMove(t, test.perSecond, test.size)
			m.sendGroups(t)
			m.switchOver(t)
			must(t, m.target.Announce(nil))
			m.sendGroups(t)
			m.finish(t)
			m.sendGroups(t)
			m.check(t)
		})
	}
}

// The network has not learnt the new place for as long as it likes: frames come to
// the source, and go on from there.
func TestProviderNetworkLearnsLate(t *testing.T) {
	m := beginMove(t, 2000, 60)
	port, err := m.links.LinkByName("port0")
	must(t, err)
	held := portEntry(port.Attrs().Index, station(mac(1)))
	held.Flags |= netlink.NTF_STICKY
	must(t, m.links.NeighSet(held)) // the switch knows better
	m.switchOver(t)
	must(t, m.target.Announce(nil))
	// The guest is heard at the source's uplink, whose bridge must not believe it.
	guestOf(m.target).send(t, numbered(mac(9), mac(1), 0, 60))
	before, err := m.source.Counters()
	must(t, err)
	waitFor(t, "traffic by the tunnel", func() bool {
		now, err := m.source.Counters()
		must(t, err)
		return now.ToGuestRedirected > before.ToGuestRedirected+1000
	})
	if ago, ever, err := m.source.LastRedirect(); err != nil || !ever || ago > 100*time.Millisecond {
		t.Errorf("the last frame was redirected %v ago (ever: %v), %v", ago, ever, err)
	}
	held.Flags &^= netlink.NTF_STICKY
	held.State = netlink.NUD_REACHABLE
	must(t, m.links.NeighSet(held))
	must(t, m.target.Announce(nil))
	m.finish(t)
	m.check(t)
}
