package network

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// The operator's bridge keeps its address and MTU whatever taps come and go, and the
// host says what bridges it has.
func TestOperatorsBridgeStaysAsItIs(t *testing.T) {
	f := newFabric(t, 1, jumbo)
	// Taps of ours that want less than the bridge, and whose own address is lower.
	before, err := f.hosts[0].nl.LinkByName(providerBridge)
	must(t, err)
	tap := f.tap(t, 0, TapConfig{Name: "gwta", Network: "prod", Bridge: providerBridge, MTU: 1500, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Gate: gate(Pass)})
	check := func(when string) {
		t.Helper()
		now, err := f.hosts[0].nl.LinkByName(providerBridge)
		must(t, err)
		if now.Attrs().MTU != jumbo || !slices.Equal(now.Attrs().HardwareAddr, before.Attrs().HardwareAddr) {
			t.Errorf("%s the bridge has MTU %d and address %v, had %d and %v", when,
				now.Attrs().MTU, now.Attrs().HardwareAddr, before.Attrs().MTU, before.Attrs().HardwareAddr)
		}
	}
	check("with a tap")
	must(t, tap.Remove())
	check("without it")
	must(t, f.hosts[0].EnsureNetwork(blue))
	got, err := f.hosts[0].HostNetworks()
	want := fleet.HostNetworks{UnderlayMTU: underlayMTU, Bridges: []fleet.Bridge{{Name: providerBridge, MTU: jumbo}}}
	if err != nil || !got.Equal(want) {
		t.Errorf("the host says it has %+v (%v), want %+v", got, err, want)
	}
}

// A guest whose address looks like a tap's own is reached as any other by the guests of
// the host where a target is prepared for it.
func TestAddressLikeATaps(t *testing.T) {
	f := newFabric(t, 2, 1500)
	like := net.HardwareAddr{0xfe, 0x54, 0, 0x77, 0, 1}
	prepare := func(host int, name string, g Gate) *Tap {
		tap := f.tap(t, host, TapConfig{Name: name, Network: "prod", Bridge: providerBridge, MAC: like, Gate: g})
		must(t, tap.AwaitForwarding(t.Context()))
		return tap
	}
	source := prepare(0, "gwta", gate(Pass))
	must(t, source.Claim())
	must(t, source.Announce(nil))
	prepare(1, "gwtb", gate(Closed))
	other := guestOf(f.providerTap(t, 1, "gwtc", 9, gate(Pass)))
	other.send(t, numbered(like, mac(9), 1, 60))
	guestOf(source).expect(t, 1)
}

func TestProviderRefuses(t *testing.T) {
	f := newFabric(t, 1, 1500)
	must(t, f.hosts[0].EnsureNetwork(blue))
	must(t, f.hosts[0].nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "down"}}))
	for name, test := range map[string]struct {
		bridge string
		mtu    int
		vlan   uint16
		code   fleet.Code
	}{
		"no such bridge":   {"br1", 1500, 0, fleet.NotFound},
		"not a bridge":     {"uplink", 1500, 0, fleet.Conflict},
		"Godwit's own":     {bridgePrefix + "5", 1450, 0, fleet.Conflict},
		"down":             {"down", 1500, 0, fleet.Failed},
		"MTU too small":    {providerBridge, jumbo, 0, fleet.Unsupported},
		"without its VLAN": {providerBridge, 1500, 100, fleet.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.hosts[0].CreateTap(TapConfig{
				Name: "gwta", Network: "prod", Bridge: test.bridge, VLAN: test.vlan, MTU: test.mtu, MAC: mac(1), Gate: gate(Closed),
			})
			if fleet.CodeOf(err) != test.code || fleet.HintOf(err) == "" {
				t.Errorf("%v (hint %q), want code %s", err, fleet.HintOf(err), test.code)
			}
			if link, err := f.hosts[0].device("gwta"); err != nil || link != nil {
				t.Errorf("the tap is left: %v, %v", link, err)
			}
		})
	}
}

// Neighbours that have another address for the guest in mind take what is announced.
func TestAnnounce(t *testing.T) {
	f := newFabric(t, 2, 1500)
	tap := f.providerTap(t, 0, "gwta", 1, gate(Pass))
	links := f.hosts[1].nl
	bridge, err := links.LinkByName(providerBridge)
	must(t, err)
	must(t, f.spaces[1].switchIPv6(providerBridge, true))
	addresses := []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")}
	for _, own := range []string{"10.9.0.2/24", "fd09::2/64"} {
		prefix := netip.MustParsePrefix(own)
		must(t, links.AddrAdd(bridge, &netlink.Addr{Flags: unix.IFA_F_NODAD, IPNet: &net.IPNet{
			IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}}))
	}
	for _, address := range addresses {
		entry := answerEntry(bridge.Attrs().Index, address, station(mac(66)))
		entry.State = netlink.NUD_STALE
		must(t, links.NeighSet(entry))
	}
	must(t, tap.Announce(addresses))
	for _, address := range addresses {
		waitFor(t, "the address of "+address.String(), func() bool {
			entries, err := links.NeighList(bridge.Attrs().Index, netlink.FAMILY_ALL)
			must(t, err)
			return slices.ContainsFunc(entries, func(n netlink.Neigh) bool {
				return n.IP.Equal(net.IP(address.AsSlice())) && slices.Equal(n.HardwareAddr, mac(1))
			})
		})
	}
	here, err := f.hosts[1].hasEntry(portOf(t, links, "uplink"), station(mac(1)), false)
	if err != nil || !here {
		t.Errorf("the other host's bridge has not learnt where the guest is: %v", err)
	}
}

func portOf(t *testing.T, links *netlink.Handle, name string) int {
	t.Helper()
	link, err := links.LinkByName(name)
	must(t, err)
	return link.Attrs().Index
}

// An announcement with the lengths that switches expect, of the guest and nobody else.
func TestAnnouncementFrames(t *testing.T) {
	for name, frame := range map[string][]byte{
		"RARP": rarp(mac(1)), "ARP": gratuitousARP(mac(1), netip.MustParseAddr("10.9.0.1")),
	} {
		if len(frame) != 60 || !slices.Equal(frame[6:12], mac(1)) || !slices.Equal(frame[:6], broadcast) {
			t.Errorf("%s: %x", name, frame)
		}
	}
	if frame := rarp(mac(1)); frame[21] != 3 || !slices.Equal(frame[22:28], mac(1)) || !slices.Equal(frame[32:38], mac(1)) {
		t.Errorf("RARP: %x", frame)
	}
}
