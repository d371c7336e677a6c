package network

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// groupLab has a tap of guest 1 on host 1 to which frames come directly and, as if
// sent on by its source on host 0, by the tunnel.
type groupLab struct {
	*lab
	tap             *Tap
	direct, forward wire
}

func newGroupLab(t *testing.T, mode Mode) *groupLab {
	t.Helper()
	g := &groupLab{lab: newLab(t, 2, underlay4)}
	g.lab.tap(t, 0, TapConfig{Name: "gwtsrc", MAC: mac(1), MTU: jumbo, Gate: redirectTo(g.underlay[1], 7)})
	g.tap = g.lab.tap(t, 1, TapConfig{Name: "gwtdst", MAC: mac(1), MTU: jumbo, Gate: gate(mode)})
	must(t, g.hosts[1].OpenTunnel(7, g.tap))
	g.forward, g.direct = g.wire(t, 0, "gwtsrc"), g.wire(t, 1, "gwtdst")
	return g
}

// come has a frame come by some ways, 'd' directly and 't' by the tunnel, and gives
// those that the guest got.
func (g *groupLab) come(t *testing.T, ways string, frame []byte) (got string) {
	t.Helper()
	for _, way := range ways {
		before, err := g.tap.Counters()
		must(t, err)
		from := g.direct
		if way == 't' {
			from = g.forward
		}
		from.send(t, frame)
		waitFor(t, "the frame judged", func() bool {
			now, err := g.tap.Counters()
			must(t, err)
			if now.ToGuestPassed > before.ToGuestPassed {
				got += string(way)
			}
			return now.toGuest() > before.toGuest()
		})
	}
	g.empty(t)
	return got
}

// empty reads what waits for the guest.
func (g *groupLab) empty(t *testing.T) {
	t.Helper()
	ended, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for guestOf(g.tap).receive(ended, t) != nil {
		continue
	}
}

// datagram is of UDP to a group of IPv4 or IPv6.
func datagram(to netip.Addr, checksum uint16, payload []byte) []byte {
	from := netip.MustParseAddr("10.5.0.9")
	group := to.AsSlice()
	length := uint16(8 + len(payload))
	var frame []byte
	if to.Is4() {
		frame = ethernet([]byte{1, 0, 0x5e, group[1] & 0x7f, group[2], group[3]}, mac(9), typeIPv4)
		frame = append(frame, 0x45, 0)
		frame = binary.BigEndian.AppendUint16(frame, 20+length)
		frame = append(frame, 0, 1, 0x40, 0, 1, unix.IPPROTO_UDP, 0, 0)
	} else {
		from = ip6(9)
		frame = ethernet(append([]byte{0x33, 0x33}, group[12:]...), mac(9), typeIPv6)
		frame = append(frame, 0x60, 0, 0, 0)
		frame = binary.BigEndian.AppendUint16(frame, length)
		frame = append(frame, unix.IPPROTO_UDP, 1)
	}
	frame = append(append(frame, from.AsSlice()...), group...)
	frame = append(frame, 0x14, 0xe9, 0x14, 0xe9)
	frame = binary.BigEndian.AppendUint16(frame, length)
	frame = binary.BigEndian.AppendUint16(frame, checksum)
	return append(frame, payload...)
}

var (
	group4 = netip.MustParseAddr("224.0.0.251")
	group6 = netip.MustParseAddr("ff02::fb")
)

// groupFrames are of all kinds that a network has.
func groupFrames() map[string][]byte {
	return map[string][]byte{
		"broadcast":          numbered(broadcast, mac(9), 2, 60),
		"ARP":                arpRequest(9, 1),
		"IPv4 multicast":     datagram(group4, 0x1234, []byte("four")),
		"IPv6 multicast":     datagram(group6, 0x1234, []byte("six")),
		"neighbour":          solicitation(9, 1),
		"a full frame":       numbered(broadcast, mac(9), 3, 1514),
		"a jumbo frame":      datagram(group4, 0x1234, slices.Repeat([]byte("jumbo"), jumbo/5-20)),
		"nothing but a head": append(slices.Clone(broadcast), append(mac(9), 0x88, 0xb5)...),
	}
}

// The first copy of each frame to all counts, whatever way it comes; the old host may
// be gone, or alone in knowing the way.
func TestFirstCopyCounts(t *testing.T) {
	g := newGroupLab(t, Settling)
	for name, frame := range groupFrames() {
		t.Run(name, func(t *testing.T) {
			for i, test := range []struct{ ways, want string }{
				{"dt", "d"},
				{"td", "t"},
				{"dtdtdt", "ddd"}, // a question that is asked again
				{"ddtt", "dd"},
				{"ttddtd", "ttt"},
				{"ddd", "ddd"}, // without the old host
				{"ttt", ""},    // what has come so far was matched by these
				{"ttt", "ttt"}, // of a host that does not send here yet
			} {
				if got := g.come(t, test.ways, frame); got != test.want {
					t.Errorf("step %d: of %s the guest got %q, want %q", i, test.ways, got, test.want)
				}
			}
		})
	}
	if got := g.come(t, "dtdd", numbered(mac(1), mac(9), 1, 60)); got != "dtdd" {
		t.Errorf("of frames for the guest alone it got %q", got)
	}
}

// Copies differ in what no sender has written, and frames in what one has.
func TestCopiesAndFrames(t *testing.T) {
	g := newGroupLab(t, Settling)
	changed := func(frame []byte, at int) []byte {
		other := slices.Clone(frame)
		other[at] ^= 1
		return other
	}
	arp := arpRequest(9, 1)
	long := numbered(broadcast, mac(9), 1, 1514)
	for name, test := range map[string]struct {
		one, other []byte
		same       bool
	}{
		"filled up":              {arp[:42], arp, true},
		"UDP checksum":           {datagram(group4, 1, []byte("a")), datagram(group4, 2, []byte("a")), true},
		"UDP checksum, IPv6":     {datagram(group6, 1, []byte("a")), datagram(group6, 2, []byte("a")), true},
		"payload":                {datagram(group4, 1, []byte("b")), datagram(group4, 1, []byte("c")), false},
		"payload, IPv6":          {datagram(group6, 1, []byte("b")), datagram(group6, 1, []byte("c")), false},
		"number of the datagram": {datagram(group4, 1, []byte("d")), changed(datagram(group4, 1, []byte("d")), 19), false},
		"a later fragment":       {changed(datagram(group4, 1, []byte("e")), 21), changed(datagram(group4, 3, []byte("e")), 21), false},
		"who asks":               {arpRequest(8, 1), arpRequest(7, 1), false},
		"the last byte":          {long, changed(long, len(long)-1), false},
	} {
		t.Run(name, func(t *testing.T) {
			want := "t"
			if test.same {
				want = ""
			}
			if got := g.come(t, "d", test.one); got != "d" {
				t.Fatalf("the guest got %q of the first one", got)
			}
			if got := g.come(t, "t", test.other); got != want {
				t.Errorf("the guest got %q of the other one, want %q", got, want)
			}
		})
	}
}

// What has come stays known when the mode changes, and when the agent is started again.
func TestCopiesOutliveModesAndAgents(t *testing.T) {
	g := newGroupLab(t, TunnelOnly)
	step := func(when, ways, want string, frame []byte) {
		t.Helper()
		if got := g.come(t, ways, frame); got != want {
			t.Errorf("%s: of %s the guest got %q, want %q", when, ways, got, want)
		}
	}
	forwarded, late, question := arpRequest(2, 1), arpRequest(3, 1), arpRequest(4, 1)
	step("before the source stops", "dt", "t", forwarded)
	step("before the source stops", "d", "", late)
	must(t, g.tap.SetGate(gate(Arriving)))
	step("before the commit", "dt", "t", question)
	must(t, g.tap.SetGate(gate(Settling)))
	step("a copy that waited for the commit", "d", "", forwarded)
	step("one whose direct copy came before", "t", "t", late)
	step("with the agent", "d", "d", arpRequest(5, 1))
	qemu, err := unix.Dup(g.tap.FDs()[0])
	must(t, err)
	g.tap, err = g.open(t, 1).AdoptTap(TapConfig{Name: "gwtdst", MAC: mac(1), Gate: gate(Closed)}, []int{qemu})
	must(t, err)
	t.Cleanup(func() { must(t, g.tap.Close()) })
	step("with the next agent", "t", "", arpRequest(5, 1))
	must(t, g.tap.SetGate(gate(Pass)))
	step("at the end", "dd", "dd", arpRequest(5, 1))
}

// A copy that never got its match is forgotten, so that a later equal frame counts.
func TestUnmatchedCopiesAreForgotten(t *testing.T) {
	g := newGroupLab(t, Settling)
	question := arpRequest(9, 1)
	for _, test := range []struct {
		periods uint64
		want    string
	}{{1, ""}, {2, "d"}} {
		waitFor(t, "a period that has begun just now", func() bool {
			var now unix.Timespec
			must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now))
			return now.Nsec < 300e6
		})
		if got := g.come(t, "t", question); got != "t" {
			t.Fatalf("the guest got %q of the first one", got)
		}
		g.age(t, test.periods)
		if got := g.come(t, "d", question); got != test.want {
			t.Errorf("%d periods later the guest got %q, want %q", test.periods, got, test.want)
		}
	}
}

// age makes what is remembered older.
func (g *groupLab) age(t *testing.T, periods uint64) {
	t.Helper()
	var key [16]byte
	var copies struct {
		Period    uint64
		Unmatched [2]int32
	}
	groups := g.hosts[1].filter.GwGroups
	must(t, groups.NextKey(nil, &key))
	must(t, groups.Lookup(&key, &copies))
	copies.Period -= periods
	must(t, groups.Put(&key, &copies))
}

// A large datagram to a group may be split on one way and not on the other: it is the
// tunnel's as before.
func TestLargeDatagramComesByTheTunnel(t *testing.T) {
	const gsoUDP = 3
	g := newGroupLab(t, Settling)
	frame := make([]byte, vnetHeader)
	frame[0], frame[1] = needsChecksum, gsoUDP
	binary.NativeEndian.PutUint16(frame[2:], 14+20+8)
	binary.NativeEndian.PutUint16(frame[4:], segmentSize)
	binary.NativeEndian.PutUint16(frame[6:], 14+20)
	binary.NativeEndian.PutUint16(frame[8:], 6)
	frame = append(frame, datagram(group4, 0, slices.Repeat([]byte("large"), 4000))...)
	send := func(host int, device string) {
		link, err := g.hosts[host].nl.LinkByName(device)
		must(t, err)
		err = sendFrame(g.hosts[host].ports.inject, frame, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
		if err != nil && err != unix.ENOBUFS { // which is what a filter's refusal gives
			t.Fatal(err)
		}
	}
	send(1, "gwtdst")
	if counters, err := g.tap.Counters(); err != nil || counters.ToGuestPassed != 0 || counters.ToGuestDropped != 1 {
		t.Errorf("what came directly was counted %+v, %v", counters, err)
	}
	send(0, "gwtsrc")
	waitFor(t, "the datagram by the tunnel", func() bool {
		counters, err := g.tap.Counters()
		must(t, err)
		return counters.ToGuestPassed > 0
	})
}

// The old host goes as soon as the target runs: all frames to all that other hosts'
// guests and the target's own send from then on come, and once.
func TestGroupsWhenTheOldHostIsGone(t *testing.T) {
	t.Run("overlay", func(t *testing.T) {
		m := beginOverlayMove(t, underlay4, 1450, 0, 60)
		m.loseSource(t, "eth0")
	})
	t.Run("provider network", func(t *testing.T) {
		m := beginProviderMove(t, 0, 60)
		m.loseSource(t, "eth0", "uplink")
	})
}

// loseSource cuts the source's host from the others after the switch.
func (m *move) loseSource(t *testing.T, devices ...string) {
	t.Helper()
	m.sendGroups(t)
	m.switchOver(t)
	m.sendGroups(t)
	for _, name := range devices {
		link, err := m.hosts[0].nl.LinkByName(name)
		must(t, err)
		must(t, m.hosts[0].nl.LinkSetDown(link))
	}
	m.senders[0].end() // is gone with it
	m.senders = m.senders[1:]
	m.sendGroups(t)
	must(t, m.hosts[1].CloseTunnel(moveTunnel))
	must(t, m.target.SetGate(Gate{Mode: Pass, Epoch: 2}))
	m.sendGroups(t)
	m.check(t)
}
