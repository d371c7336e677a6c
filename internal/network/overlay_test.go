package network

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

var blue = Network{Name: "blue", VNI: 5, MTU: 1450}

func address(last byte, host netip.Addr, local string) Address {
	ips := []netip.Addr{netip.AddrFrom4([4]byte{10, 5, 0, last}), ip6(last)}
	return Address{MAC: mac(last), IPs: ips, Host: host, Local: local}
}

func ip6(last byte) netip.Addr { return netip.AddrFrom16([16]byte{0xfd, 5, 15: last}) }

// overlayLab has guest 1 on host 0, guests 2 and 4 on host 1, guest 3 on host 2.
func overlayLab(t *testing.T, underlay func(int) netip.Prefix) (*lab, map[byte]guest, map[byte]*Tap) {
	l := newLab(t, 3, underlay)
	l.network(t, blue)
	guests, taps := make(map[byte]guest), make(map[byte]*Tap)
	for last, host := range map[byte]int{1: 0, 2: 1, 3: 2, 4: 1} {
		taps[last] = l.tap(t, host, TapConfig{Name: TapPrefix + string('0'+last), Network: blue.Name, MAC: mac(last), Gate: gate(Pass)})
		guests[last] = guestOf(taps[last])
	}
	for i, h := range l.hosts {
		must(t, h.ApplyAddresses(blue.Name, l.addresses(i)))
	}
	return l, guests, taps
}

// addresses is the map of overlayLab as host i is given it.
func (l *lab) addresses(i int) []Address {
	list := []Address{address(1, l.underlay[0], ""), address(2, l.underlay[1], ""),
		address(3, l.underlay[2], ""), address(4, l.underlay[1], "")}
	for j := range list {
		if list[j].Host == l.underlay[i] {
			list[j].Local = TapPrefix + string('0'+list[j].MAC[5])
		}
	}
	return list
}

func TestOverlay(t *testing.T) {
	for _, test := range []struct {
		name     string
		underlay func(int) netip.Prefix
	}{{"IPv4 underlay", underlay4}, {"IPv6 underlay", underlay6}} {
		t.Run(test.name, func(t *testing.T) {
			_, guests, _ := overlayLab(t, test.underlay)
			guests[1].send(t, numbered(mac(2), mac(1), 1, 1464))
			guests[2].expect(t, 1)
			guests[2].send(t, numbered(mac(1), mac(2), 2, 60))
			guests[1].expect(t, 2)
			guests[2].send(t, numbered(mac(4), mac(2), 3, 60))
			guests[4].expect(t, 3)
			guests[1].send(t, numbered(mac(99), mac(1), 4, 60)) // nobody's
			guests[1].send(t, numbered(broadcast, mac(1), 5, 60))
			for _, last := range []byte{2, 3, 4} {
				guests[last].expect(t, 5) // the next one: not frame 4
				if more := guests[last].waiting(t); len(more) != 0 {
					t.Errorf("guest %d also got %v", last, more)
				}
			}
			if heard := guests[1].waiting(t); len(heard) != 0 {
				t.Errorf("the sender heard %v", heard)
			}
		})
	}
}

// The whole forwarding also works where the underlay is IPv6.
func TestRedirectOverIPv6(t *testing.T) {
	l := newLab(t, 2, underlay6)
	source := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: redirectTo(l.underlay[1], 9)})
	target := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: gate(TunnelOnly)})
	must(t, l.hosts[1].OpenTunnel(9, target))
	l.wire(t, 0, "gwta").send(t, numbered(mac(1), mac(9), 1, 1514))
	guestOf(target).expect(t, 1)
	if g, err := source.Gate(); err != nil || g != redirectTo(l.underlay[1], 9) {
		t.Errorf("the gate is %+v (%v)", g, err)
	}
}

// A guest moves from host 0 to host 1, and the map follows step by step.
func TestAddressMoves(t *testing.T) {
	l, guests, taps := overlayLab(t, underlay4)
	target := l.tap(t, 1, TapConfig{Name: "gwtnew", Network: blue.Name, MAC: mac(1), Gate: gate(TunnelOnly)})
	must(t, l.hosts[1].OpenTunnel(9, target))
	must(t, taps[1].SetGate(redirectTo(l.underlay[1], 9)))
	must(t, target.SetGate(gate(Settling)))
	arrived := guestOf(target)

	guests[3].send(t, numbered(mac(1), mac(3), 1, 60)) // still by host 0
	arrived.expect(t, 1)
	apply := func(i int, entry Address) {
		t.Helper()
		list := l.addresses(i)
		list[0] = entry
		must(t, l.hosts[i].ApplyAddresses(blue.Name, list, l.underlay[0]))
	}
	apply(0, Address{MAC: mac(1), Host: l.underlay[1], Local: "gwt1", Hold: true})
	guests[3].send(t, numbered(mac(1), mac(3), 2, 60)) // held there
	arrived.expect(t, 2)
	must(t, target.Claim())
	apply(2, address(1, l.underlay[1], ""))
	guests[3].send(t, numbered(mac(1), mac(3), 8, 60)) // directly, before host 1 has the map
	arrived.expect(t, 8)
	apply(1, address(1, l.underlay[1], "gwtnew"))
	guests[3].send(t, numbered(mac(1), mac(3), 3, 60)) // directly
	guests[2].send(t, numbered(mac(1), mac(2), 4, 60))
	arrived.expect(t, 3, 4)
	guests[3].send(t, numbered(broadcast, mac(3), 5, 60)) // once, though both hosts get it
	arrived.expect(t, 5)
	arrived.send(t, numbered(broadcast, mac(1), 6, 60)) // comes to the old tap, and not back
	guests[3].expect(t, 6)
	counters, err := taps[1].Counters()
	must(t, err)
	if counters.ToGuestRedirected != 3 {
		t.Errorf("the old tap forwarded %d frames, want 2 and one broadcast", counters.ToGuestRedirected)
	}
	must(t, taps[1].Remove())
	apply(0, address(1, l.underlay[1], ""))
	must(t, target.SetGate(gate(Pass)))
	guests[3].send(t, numbered(broadcast, mac(3), 7, 60))
	arrived.expect(t, 7)
	if more := arrived.waiting(t); len(more) != 0 {
		t.Errorf("the guest also got %v", more)
	}
}

// arpRequest is RFC 826's, from 10.5.0.from for 10.5.0.about.
func arpRequest(from, about byte) []byte {
	own, other := netip.AddrFrom4([4]byte{10, 5, 0, from}), netip.AddrFrom4([4]byte{10, 5, 0, about})
	return arpPacket(ethernet(broadcast, mac(from), typeARP), 1, mac(from), own, make(net.HardwareAddr, 6), other)
}

func etherType(frame []byte) uint16 { return binary.BigEndian.Uint16(frame[12:]) }

// A question about a remote address is answered on the spot and stays on the
// host; one about a local address is answered by its owner alone.
func TestARPIsAnsweredLocally(t *testing.T) {
	_, guests, _ := overlayLab(t, underlay4)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	guests[1].send(t, arpRequest(1, 2))
	answer := guests[1].receive(ctx, t)
	if len(answer) < 42 || etherType(answer) != unix.ETH_P_ARP || answer[21] != 2 || !slices.Equal(answer[22:28], mac(2)) {
		t.Fatalf("the answer is %x, want that 10.5.0.2 is at %v", answer, mac(2))
	}
	guests[2].send(t, arpRequest(2, 4))
	if question := guests[4].receive(ctx, t); len(question) < 42 || etherType(question) != unix.ETH_P_ARP {
		t.Errorf("guest 4 got %x, want the question", question)
	}
	// A marker behind the questions: had they been flooded, they came first.
	guests[1].send(t, numbered(broadcast, mac(1), 1, 60))
	for _, last := range []byte{2, 3, 4} {
		if frame := guests[last].receive(ctx, t); len(frame) < 14 || etherType(frame) != 0x88b5 {
			t.Errorf("guest %d got %x before the marker", last, frame)
		}
	}
}

// solicitation is the question of RFC 4861, section 4.3, from fd05::from about
// fd05::about. The bridge does not look at its checksum.
func solicitation(from, about byte) []byte {
	source, target := ip6(from).AsSlice(), ip6(about).AsSlice()
	frame := append([]byte{0x33, 0x33, 0xff, 0, 0, about}, mac(from)...)
	frame = append(frame, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, unix.IPPROTO_ICMPV6, 255)
	frame = append(frame, source...)
	frame = append(frame, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, about)
	frame = append(frame, 135, 0, 0, 0, 0, 0, 0, 0)
	frame = append(frame, target...)
	return append(append(frame, 1, 1), mac(from)...)
}

func TestNeighbourDiscoveryIsAnsweredLocally(t *testing.T) {
	_, guests, _ := overlayLab(t, underlay4)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	guests[1].send(t, solicitation(1, 2))
	const advertisement, kind, link = 136, 54, 80
	answer := guests[1].receive(ctx, t)
	if len(answer) < link+6 || answer[kind] != advertisement || !slices.Equal(answer[link:link+6], mac(2)) {
		t.Fatalf("the answer is %x, want that fd05::2 is at %v", answer, mac(2))
	}
	guests[1].send(t, numbered(broadcast, mac(1), 1, 60))
	if frame := guests[2].receive(ctx, t); len(frame) < 14 || etherType(frame) != 0x88b5 {
		t.Errorf("guest 2 got %x before the marker", frame)
	}
}

func TestApplyAddressesIsExact(t *testing.T) {
	l, _, _ := overlayLab(t, underlay4)
	h := l.hosts[0]
	devices, err := h.find("test", blue.Name)
	must(t, err)
	extra := netip.MustParseAddr("10.77.0.99")
	v6 := netip.MustParseAddr("fd05::2")
	for _, list := range [][]Address{
		{address(1, l.underlay[0], "gwt1"), address(2, l.underlay[1], ""), {MAC: mac(7), IPs: []netip.Addr{v6}, Host: extra}},
		{address(2, l.underlay[2], "")},
		{{MAC: mac(2), Host: l.underlay[1], Local: "gwt1", Hold: true}},
		nil,
	} {
		want, err := h.wanted(devices, list, []netip.Addr{l.underlay[0], l.underlay[2]})
		must(t, err)
		must(t, h.ApplyAddresses(blue.Name, list, l.underlay[0], l.underlay[2]))
		have, err := h.present(devices)
		must(t, err)
		if !have.equal(want) {
			t.Errorf("the kernel has %+v, want %+v", have, want)
		}
	}
}

func (e entries) equal(other entries) bool {
	return mapsEqual(e.ports, other.ports) && mapsEqual(e.remotes, other.remotes) &&
		mapsEqual(e.flood, other.flood) && mapsEqual(e.answers, other.answers)
}

func mapsEqual[K, V comparable](a, b map[K]V) bool {
	for key, value := range a {
		if other, ok := b[key]; !ok || other != value {
			return false
		}
	}
	return len(a) == len(b)
}

// What is wrong is named, the rest is set.
func TestApplyAddressesReportsWhatItLeavesOut(t *testing.T) {
	l, guests, _ := overlayLab(t, underlay4)
	for _, test := range []struct {
		name  string
		wrong Address
	}{
		{"device missing", Address{MAC: mac(9), Host: l.underlay[0], Local: "gwt9"}},
		{"device not said", Address{MAC: mac(9), Host: l.underlay[0]}},
		{"device outside", Address{MAC: mac(9), Host: l.underlay[0], Local: "eth0"}},
		{"group address", Address{MAC: broadcast, Host: l.underlay[1]}},
		{"no host", Address{MAC: mac(9)}},
		{"other family", Address{MAC: mac(9), Host: netip.MustParseAddr("fd00::1")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := l.hosts[0].ApplyAddresses(blue.Name, append([]Address{test.wrong}, l.addresses(0)...))
			if fleet.CodeOf(err) != fleet.Invalid {
				t.Errorf("ApplyAddresses: %v, want invalid", err)
			}
			guests[1].send(t, numbered(mac(2), mac(1), 1, 60))
			guests[2].expect(t, 1)
		})
	}
}

// The host's own stack hears and says nothing in an overlay, even with an
// address on the bridge.
func TestHostStaysOutOfOverlay(t *testing.T) {
	l, guests, _ := overlayLab(t, underlay4)
	h := l.hosts[0]
	bridge, err := h.nl.LinkByName("gwb-5")
	must(t, err)
	must(t, h.nl.AddrAdd(bridge, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 5, 0, 200), Mask: net.CIDRMask(24, 32)}}))
	guests[1].send(t, arpRequest(1, 200))
	guests[2].send(t, numbered(mac(1), mac(2), 1, 60))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if frame := guests[1].receive(ctx, t); len(frame) < 14 || etherType(frame) != 0x88b5 {
		t.Errorf("the guest got %x, want the marker of guest 2 alone", frame)
	}
}

func TestEndpoint(t *testing.T) {
	l, guests, _ := overlayLab(t, underlay4)
	h := l.hosts[2]
	must(t, h.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "edge0"}, PeerName: "edge1"}))
	peer, err := h.nl.LinkByName("edge1")
	must(t, err)
	must(t, h.nl.LinkSetUp(peer))
	must(t, h.AttachEndpoint(blue.Name, "edge0"))
	must(t, h.AttachEndpoint(blue.Name, "edge0"))
	for i, h := range l.hosts {
		local := ""
		if i == 2 {
			local = "edge0"
		}
		must(t, h.ApplyAddresses(blue.Name, append(l.addresses(i), address(8, l.underlay[2], local))))
	}
	outside := l.wire(t, 2, "edge1")
	outside.send(t, numbered(mac(1), mac(8), 1, 60))
	guests[1].expect(t, 1)

	must(t, h.KeepEndpoints(blue.Name, []string{"edge0"}))
	outside.send(t, numbered(mac(1), mac(8), 4, 60))
	guests[1].expect(t, 4)
	must(t, h.KeepEndpoints(blue.Name, nil))
	must(t, h.KeepEndpoints(blue.Name, nil))
	outside.send(t, numbered(mac(1), mac(8), 2, 60))
	guests[2].send(t, numbered(mac(1), mac(2), 3, 60))
	guests[1].expect(t, 3)
	for device, code := range map[string]fleet.Code{"gwt3": fleet.Invalid, "gwx-5": fleet.Invalid, "none": fleet.NotFound} {
		if err := h.AttachEndpoint(blue.Name, device); fleet.CodeOf(err) != code {
			t.Errorf("attaching %s: %v, want %v", device, err, code)
		}
	}
}

func TestEnsureAndRemoveNetwork(t *testing.T) {
	l := newLab(t, 1, underlay4)
	h := l.hosts[0]
	before := names(t, h)
	must(t, h.EnsureNetwork(blue))
	must(t, h.EnsureNetwork(Network{Name: "blue", VNI: 5, MTU: 1400}))
	for name, test := range map[string]struct {
		network Network
		code    fleet.Code
	}{
		"other VNI":   {Network{Name: "blue", VNI: 6, MTU: 1450}, fleet.Conflict},
		"VNI in use":  {Network{Name: "red", VNI: 5, MTU: 1450}, fleet.Conflict},
		"VNI missing": {Network{Name: "red", MTU: 1450}, fleet.Invalid},
		"VNI range":   {Network{Name: "red", VNI: 1 << 24, MTU: 1450}, fleet.Invalid},
		"no MTU":      {Network{Name: "red", VNI: 7}, fleet.Invalid},
		"no name":     {Network{VNI: 7, MTU: 1450}, fleet.Invalid},
	} {
		if err := h.EnsureNetwork(test.network); fleet.CodeOf(err) != test.code {
			t.Errorf("%s: %v, want %v", name, err, test.code)
		}
	}
	tap := l.tap(t, 0, TapConfig{Name: "gwta", Network: "blue", MAC: mac(1), Gate: gate(Pass)})
	link, err := h.nl.LinkByName("gwta")
	must(t, err)
	if link.Attrs().MTU != 1400 {
		t.Errorf("the tap's MTU is %d, want the network's", link.Attrs().MTU)
	}
	if err := h.RemoveNetwork("blue"); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("removing a network with a tap: %v, want conflict", err)
	}
	must(t, tap.Remove())
	must(t, h.RemoveNetwork("blue"))
	must(t, h.RemoveNetwork("blue"))
	if got := names(t, h); !slices.Equal(got, before) {
		t.Errorf("devices are %v, were %v", got, before)
	}
	if err := h.ApplyAddresses("blue", nil); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("ApplyAddresses without the network: %v, want not-found", err)
	}
}

// A VM of an overlay moves under load from everywhere, as the agents do it, and nothing
// is lost or comes twice.
func TestOverlayHandOver(t *testing.T) {
	for _, test := range []struct {
		name            string
		underlay        func(int) netip.Prefix
		mtu             int
		perSecond, size int
	}{
		{"small frames", underlay4, 1450, 4000, 60},
		{"IPv6 underlay", underlay6, 1450, 2000, 1464},
		{"jumbo frames", underlay4, jumbo, 1000, jumbo + 14},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := beginOverlayMove(t, test.underlay, test.mtu, test.perSecond, test.size)
			m.sendToAll(t)
			m.sendGroups(t)
			m.switchOver(t)
			m.sendGroups(t)
			m.spread(t, 1, true)
			m.sendGroups(t)
			waitFor(t, "frames on their old way at the guest", func() bool { return m.quiet(t) })
			m.spread(t, 1, false) // first: the source's own guests send into its tap
			m.finish(t)
			m.sendGroups(t)
			m.check(t)
		})
	}
}

func beginOverlayMove(t *testing.T, underlay func(int) netip.Prefix, mtu, perSecond, size int) *move {
	t.Helper()
	m := &move{lab: newLab(t, 3, underlay)}
	m.network(t, Network{Name: blue.Name, VNI: blue.VNI, MTU: mtu})
	m.begin(t, func(host int, name string, last byte, g Gate) *Tap {
		tap := m.tap(t, host, TapConfig{Name: name, Network: blue.Name, MAC: mac(last), Gate: g})
		must(t, tap.AwaitForwarding(t.Context()))
		m.spread(t, 0, true)
		return tap
	}, perSecond, size)
	return m
}

// spread has every host know where guest 1 is, and which host forwards for it.
func (m *move) spread(t *testing.T, owner int, forwards bool) {
	t.Helper()
	for i, h := range m.hosts {
		list := []Address{{MAC: mac(1), Host: m.underlay[owner]}}
		switch {
		case i == 0 && forwards:
			list[0].Local, list[0].Hold = "gwta", owner != 0
		case i == owner:
			list[0].Local = "gwtb"
		}
		for host := range m.hosts {
			name, last := senderTap(host)
			one := Address{MAC: mac(last), Host: m.underlay[host]}
			if host == i {
				one.Local = name
			}
			list = append(list, one)
		}
		// A tap that is not made yet is no device in the network.
		if err := h.ApplyAddresses(blue.Name, list, m.underlay...); err != nil && fleet.CodeOf(err) != fleet.Invalid {
			t.Fatal(err)
		}
	}
}
