package network

import (
	"errors"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// The agent dies with a redirect in force, and comes back: nothing changes in
// between, and the new one has it in hand.
func TestRestart(t *testing.T) {
	l := newLab(t, 2, underlay4)
	l.network(t, Network{Name: "blue", VNI: 5, MTU: 1450})
	source, err := l.hosts[0].CreateTap(TapConfig{Name: "gwta", Network: "blue", MAC: mac(1), Gate: gate(Pass)})
	must(t, err)
	target := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: gate(TunnelOnly)})
	must(t, l.hosts[1].OpenTunnel(9, target))
	must(t, source.SetGate(redirectTo(l.underlay[1], 9)))
	qemu, err := unix.Dup(source.FDs()[0]) // the copy that survives the agent
	must(t, err)
	must(t, source.Close())
	l.shut(t, 0)

	w, g := l.wireByIndex(t, 0, source.ifindex), guestOf(target)
	w.send(t, numbered(mac(1), mac(9), 1, 60))
	g.expect(t, 1) // without an agent

	h := l.open(t, 0)
	taps, err := h.Taps()
	must(t, err)
	if len(taps) != 1 || taps[0].Name != "gwta" || taps[0].Network != "blue" || !taps[0].Open ||
		!slices.Equal(taps[0].MAC, mac(1)) || taps[0].Gate != redirectTo(l.underlay[1], 9) {
		t.Errorf("found taps %+v", taps)
	}
	if taps[0].Counters.ToGuestRedirected != 1 {
		t.Errorf("the counters began anew: %+v", taps[0].Counters)
	}
	if _, err := h.AdoptTap(TapConfig{Name: "gwta", MAC: mac(2), Gate: gate(Closed)}, nil); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("adopting a tap whose queue QEMU has, without a copy of it: %v, want conflict", err)
	}
	adopted, err := h.AdoptTap(TapConfig{Name: "gwta", MAC: mac(2), Gate: gate(Closed)}, []int{qemu})
	must(t, err)
	w.send(t, numbered(mac(1), mac(9), 2, 60))
	g.expect(t, 2)
	must(t, adopted.SetGate(gate(Pass)))
	w.send(t, numbered(mac(1), mac(9), 3, 60))
	guestOf(adopted).expect(t, 3)

	// The VM has left: nobody has a queue, the tap is still there.
	must(t, adopted.Close())
	again, err := h.AdoptTap(TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Closed)}, nil)
	must(t, err)
	w.send(t, numbered(mac(1), mac(9), 4, 60))
	guestOf(again).expect(t, 4)
	must(t, again.Remove())
	if taps, err := h.Taps(); err != nil || len(taps) != 0 {
		t.Errorf("after removal there are %+v (%v)", taps, err)
	}
}

// wireByIndex is wire while no Host is open.
func (l *lab) wireByIndex(t *testing.T, host, ifindex int) wire {
	t.Helper()
	w := wire{fd: -1, to: &unix.SockaddrLinklayer{Ifindex: ifindex}}
	must(t, l.spaces[host].do(func() (err error) {
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}))
	t.Cleanup(func() { must(t, unix.Close(w.fd)) })
	return w
}

// The tunnels outlive the agent of the target as well.
func TestRestartKeepsTunnels(t *testing.T) {
	l := newLab(t, 2, underlay4)
	l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: redirectTo(l.underlay[1], 9)})
	target := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: gate(TunnelOnly)})
	must(t, l.hosts[1].OpenTunnel(9, target))
	l.open(t, 1)
	l.wire(t, 0, "gwta").send(t, numbered(mac(1), mac(9), 1, 60))
	guestOf(target).expect(t, 1)
}

func TestSweepForgetsTapsThatAreGone(t *testing.T) {
	l := newLab(t, 1, underlay4)
	h := l.hosts[0]
	tap := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Pass)})
	must(t, h.OpenTunnel(9, tap))
	link, err := h.nl.LinkByName("gwta")
	must(t, err)
	must(t, h.nl.LinkDel(link)) // somebody with ip(8)
	h = l.open(t, 0)
	var key, value uint32
	if h.filter.GwTunnels.Iterate().Next(&key, &value) {
		t.Errorf("tunnel %d still leads to interface %d", key, value)
	}
	if _, ok, err := h.gateOf(tap.ifindex); ok || err != nil {
		t.Errorf("interface %d still has a gate (%v)", tap.ifindex, err)
	}
}

func TestPurgeLeavesOnlyWhatIsNotOurs(t *testing.T) {
	l := newLab(t, 1, underlay4)
	h := l.hosts[0]
	before := names(t, h)
	l.network(t, Network{Name: "blue", VNI: 5, MTU: 1450})
	l.tap(t, 0, TapConfig{Name: "gwta", Network: "blue", MAC: mac(1), Gate: gate(Pass)})
	must(t, h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "gwt-other"}}))
	must(t, h.nl.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "edge0"}, PeerName: "edge1"}))
	must(t, h.AttachEndpoint("blue", "edge0"))
	must(t, h.Purge())
	want := slices.DeleteFunc(append(before, "gwt-other", "edge0", "edge1"), func(name string) bool { return name == tunnelDevice })
	slices.Sort(want)
	if got := names(t, h); !slices.Equal(got, want) {
		t.Errorf("devices are %v, want %v", got, want)
	}
	must(t, h.Purge())
}

func names(t *testing.T, h *Host) (names []string) {
	t.Helper()
	links, err := h.links()
	must(t, err)
	for _, link := range links {
		names = append(names, link.Attrs().Name)
	}
	slices.Sort(names)
	return names
}

func TestCreateTapRefuses(t *testing.T) {
	l := newLab(t, 1, underlay4)
	l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Closed)})
	before := names(t, l.hosts[0])
	for _, test := range []struct {
		name string
		cfg  TapConfig
		code fleet.Code
	}{
		{"prefix", TapConfig{Name: "tap0", MAC: mac(1), Gate: gate(Closed)}, fleet.Invalid},
		{"long name", TapConfig{Name: "gwt3456789012345", MAC: mac(1), Gate: gate(Closed)}, fleet.Invalid},
		{"pattern", TapConfig{Name: "gwt%d", MAC: mac(1), Gate: gate(Closed)}, fleet.Invalid},
		{"no MAC", TapConfig{Name: "gwtb", Gate: gate(Closed)}, fleet.Invalid},
		{"group MAC", TapConfig{Name: "gwtb", MAC: broadcast, Gate: gate(Closed)}, fleet.Invalid},
		{"no gate", TapConfig{Name: "gwtb", MAC: mac(1)}, fleet.Invalid},
		{"queues", TapConfig{Name: "gwtb", MAC: mac(1), Queues: 257, Gate: gate(Closed)}, fleet.Invalid},
		{"MTU", TapConfig{Name: "gwtb", MAC: mac(1), MTU: 67, Gate: gate(Closed)}, fleet.Invalid},
		{"no network", TapConfig{Name: "gwtb", MAC: mac(1), Network: "red", Gate: gate(Closed)}, fleet.NotFound},
		{"taken", TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Closed)}, fleet.Exists},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := l.hosts[0].CreateTap(test.cfg); fleet.CodeOf(err) != test.code {
				t.Errorf("CreateTap: %v, want %v", err, test.code)
			}
			if after := names(t, l.hosts[0]); !slices.Equal(after, before) {
				t.Errorf("devices are %v, were %v", after, before)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(Config{}); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("Open without an address: %v, want invalid", err)
	}
	l := newLab(t, 1, underlay4)
	h := l.hosts[0]
	must(t, h.Purge())
	must(t, h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: tunnelDevice}}))
	err := l.spaces[0].do(func() error {
		other, err := Open(Config{Underlay: l.underlay[0]})
		if other != nil {
			err = errors.Join(err, other.Close())
		}
		return err
	})
	if fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("Open beside a foreign device: %v, want conflict", err)
	}
}

func TestOpenVhost(t *testing.T) {
	fds, err := OpenVhost(2)
	if fleet.CodeOf(err) == fleet.Unsupported {
		if fds != nil {
			t.Errorf("unsupported, yet descriptors %v", fds)
		}
		return
	}
	must(t, err)
	if len(fds) != 2 {
		t.Errorf("got %d descriptors, want 2", len(fds))
	}
	must(t, closeFDs(fds))
}
