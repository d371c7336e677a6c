package network

import (
	"fmt"
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
	vlan  uint16          // of the network; 0 is none
}

func newFabric(t *testing.T, hosts, mtu int) fabric {
	t.Helper()
	return newFabricOf(t, hosts, netlink.Bridge{LinkAttrs: netlink.LinkAttrs{MTU: mtu}})
}

// newFabricOf makes one whose bridges are like that one.
func newFabricOf(t *testing.T, hosts int, like netlink.Bridge) fabric {
	t.Helper()
	f := fabric{lab: newLab(t, hosts, underlay4)}
	mtu := like.MTU
	named := func(name string) *netlink.Bridge {
		one := like
		one.Name = name
		return &one
	}
	space := newNamespace(t)
	f.links = handleIn(t, space)
	must(t, f.links.LinkAdd(named("switch")))
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
		must(t, links.LinkAdd(named(providerBridge)))
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
	tap := f.tap(t, host, TapConfig{Name: name, Network: "prod", Bridge: providerBridge, VLAN: f.vlan, MAC: mac(last), Gate: g})
	must(t, tap.AwaitForwarding(t.Context()))
	if g.Mode == Pass {
		must(t, tap.Claim())
	}
	return tap
}

// providerMove is one between bridges of a fabric.
type providerMove struct {
	move
	fabric fabric
}

func beginProviderMove(t *testing.T, perSecond, size int) *providerMove {
	t.Helper()
	return newFabric(t, 3, jumbo).beginMove(t, perSecond, size)
}

func (f fabric) beginMove(t *testing.T, perSecond, size int) *providerMove {
	t.Helper()
	m := &providerMove{fabric: f}
	m.lab = f.lab
	m.begin(t, func(host int, name string, last byte, g Gate) *Tap {
		return m.fabric.providerTap(t, host, name, last, g)
	}, perSecond, size)
	must(t, m.source.Announce(nil))
	return m
}

// finish ends the forwarding, as an agent does.
func (m *providerMove) finish(t *testing.T) {
	t.Helper()
	waitFor(t, "nothing from outside at the source", func() bool { return m.quiet(t) })
	m.yield(t, m.source, m.target)
	m.move.finish(t)
}

// complete takes the move to its end, with frames to all on the way, and checks it.
func (m *providerMove) complete(t *testing.T) {
	t.Helper()
	m.sendToAll(t)
	m.sendGroups(t)
	m.switchOver(t)
	must(t, m.target.Announce(nil))
	m.sendGroups(t)
	m.finish(t)
	m.sendGroups(t)
	m.check(t)
}

// yield has the bridge of one tap hear that the guest is at the other.
func (m *providerMove) yield(t *testing.T, from, to *Tap) {
	t.Helper()
	yielded := make(chan error, 1)
	go func() { yielded <- from.Yield(t.Context()) }()
	waitFor(t, "a bridge to hear the guest elsewhere", func() bool {
		must(t, to.Announce(nil))
		return len(yielded) > 0
	})
	must(t, <-yielded)
}

// A target that is given up after it had the frames come gives them back, those of its
// own host's guests, too.
func TestProviderAbort(t *testing.T) {
	m := beginProviderMove(t, 4000, 60)
	m.sendToAll(t)
	m.leave(t)
	m.sendGroups(t)
	must(t, m.source.SetGate(gate(Pass)))
	m.runOn(t, m.source)
	m.sendGroups(t)
	must(t, m.target.SetGate(Gate{Mode: Returning, Epoch: 2, Tunnel: moveTunnel, Remote: m.underlay[0]}))
	m.sendGroups(t)
	_, err := m.target.Drain(t.Context())
	must(t, err)
	m.sendGroups(t)
	m.yield(t, m.target, m.source)
	must(t, m.target.Remove())
	m.check(t)
}

// A VM moves from bridge to bridge under load from everywhere, and nothing is lost or
// comes twice, until after the source's tap is gone.
func TestProviderHandOver(t *testing.T) {
	for _, test := range []struct {
		name            string
		perSecond, size int
	}{{"small frames", 4000, 60}, {"full frames", 2000, 1514}, {"jumbo frames", 1000, jumbo + 14}} {
		t.Run(test.name, func(t *testing.T) {
			beginProviderMove(t, test.perSecond, test.size).complete(t)
		})
	}
}

// The network has not learnt the new place for as long as it likes: frames come to
// the source, and go on from there.
func TestProviderNetworkLearnsLate(t *testing.T) {
	m := beginProviderMove(t, 2000, 60)
	port, err := m.fabric.links.LinkByName("port0")
	must(t, err)
	held := portEntry(port.Attrs().Index, station(mac(1)))
	held.Flags |= netlink.NTF_STICKY
	must(t, m.fabric.links.NeighSet(held)) // the switch knows better
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
	must(t, m.fabric.links.NeighSet(held))
	must(t, m.target.Announce(nil))
	m.finish(t)
	m.check(t)
}
