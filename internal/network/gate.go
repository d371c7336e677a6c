package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"godwit.dev/godwit/internal/fleet"
)

// Mode says what passes a gate. The zero value is invalid. The numbers are
// those of bpf/gate.c and outlive the agent in the kernel.
type Mode uint32

// The modes. "To the guest" is what the host sends into the tap, "from the
// guest" what the guest sends out.
const (
	// Pass: everything, both ways.
	Pass Mode = 1
	// Closed: nothing, either way.
	Closed Mode = 2
	// TunnelOnly: to the guest only what came by a migration tunnel; from the
	// guest nothing. The target before the commit.
	TunnelOnly Mode = 3
	// Redirect: what was meant for the guest goes by the tunnel to the remote
	// host; from the guest nothing. The source from the switch on.
	Redirect Mode = 4
	// Settling: to the guest everything, but broadcast and multicast, of which a
	// copy comes directly and one by the tunnel, once; from the guest everything.
	// The target from the commit until the source no longer forwards.
	Settling Mode = 5
	// Leaving: to the guest as Redirect, from the guest everything. The source
	// in the last moment before its QEMU is stopped, so that no frame is in
	// QEMU's own queue when it stops.
	Leaving Mode = 6
	// Arriving: to the guest everything but broadcast and multicast that did not
	// come by the tunnel, from the guest nothing. The target that has loaded
	// everything and asks for the commit: once it is given, other hosts send
	// here, maybe before this one has heard of it.
	Arriving Mode = 7
	// Returning: to the guest as Redirect, but of broadcast and multicast only
	// what Drain sends, since the remote host has the rest itself; from the guest
	// nothing. The target after an abort.
	Returning Mode = 8
)

// String gives the mode as it is printed.
func (m Mode) String() string {
	switch m {
	case Pass:
		return "pass"
	case Closed:
		return "closed"
	case TunnelOnly:
		return "tunnel-only"
	case Redirect:
		return "redirect"
	case Settling:
		return "settling"
	case Leaving:
		return "leaving"
	case Arriving:
		return "arriving"
	case Returning:
		return "returning"
	}
	return fmt.Sprintf("mode(%d)", uint32(m))
}

func (m Mode) redirects() bool { return m == Redirect || m == Leaving || m == Returning }

// Gate is the rule at one tap. Tunnel and Remote are for the modes that redirect.
type Gate struct {
	Mode   Mode
	Epoch  fleet.Epoch    // of the instance behind the tap; never goes back
	Tunnel fleet.TunnelID // the id that the remote host has open
	Remote netip.Addr     // the remote host's underlay address
}

// gateEntry is struct gate of bpf/gate.c.
type gateEntry struct {
	Lock   uint32
	Mode   Mode
	Tunnel fleet.TunnelID
	Remote [4]uint32
	MAC    [6]byte
	_      [2]byte
	_      uint32
	Epoch  fleet.Epoch
}

// check reports why the gate cannot be set on a host with this underlay address.
func (g Gate) check(underlay netip.Addr) error {
	switch g.Mode {
	case Pass, Closed, TunnelOnly, Settling, Arriving:
		return nil
	case Redirect, Leaving, Returning:
	default:
		return fmt.Errorf("%v is not a mode", g.Mode)
	}
	if g.Tunnel == 0 || g.Tunnel > fleet.MaxTunnelID {
		return fmt.Errorf("tunnel id %d is not in 1 to %d", g.Tunnel, fleet.MaxTunnelID)
	}
	if !g.Remote.IsValid() || g.Remote.Is4() != underlay.Is4() {
		return fmt.Errorf("remote %v is not of the family of this host's underlay address %v", g.Remote, underlay)
	}
	if g.Remote == underlay {
		return errors.New("the remote host is this host")
	}
	return nil
}

func (g Gate) entry(mac net.HardwareAddr) gateEntry {
	e := gateEntry{Mode: g.Mode, Tunnel: g.Tunnel, Epoch: g.Epoch, Remote: tunnelAddress(g.Remote)}
	copy(e.MAC[:], mac)
	return e
}

func (e gateEntry) gate(underlay netip.Addr) Gate {
	g := Gate{Mode: e.Mode, Tunnel: e.Tunnel, Epoch: e.Epoch}
	if !e.Mode.redirects() {
		return g
	}
	if underlay.Is4() {
		g.Remote = netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, e.Remote[0])))
		return g
	}
	var raw [16]byte
	for i, word := range e.Remote {
		binary.NativeEndian.PutUint32(raw[4*i:], word)
	}
	g.Remote = netip.AddrFrom16(raw)
	return g
}

// tunnelAddress gives addr as struct bpf_tunnel_key of linux/bpf.h wants it:
// IPv4 as a number in host order, IPv6 as bytes in network order.
func tunnelAddress(addr netip.Addr) (words [4]uint32) {
	if addr.Is4() {
		raw := addr.As4()
		words[0] = binary.BigEndian.Uint32(raw[:])
	} else if addr.Is6() {
		raw := addr.As16()
		for i := range words {
			words[i] = binary.NativeEndian.Uint32(raw[4*i:])
		}
	}
	return words
}

// gateOf reads the gate of an interface; ok is false if it has none.
func (h *Host) gateOf(ifindex int) (entry gateEntry, ok bool, err error) {
	err = h.filter.GwGates.LookupWithFlags(uint32(ifindex), &entry, ebpf.LookupLock)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return gateEntry{}, false, nil
	}
	return entry, err == nil, err
}

// putGate sets the gate of an interface. The lock flag makes the kernel
// replace an entry in place under the lock that the programs take to read it.
func (h *Host) putGate(ifindex int, entry gateEntry) error {
	return h.filter.GwGates.Update(uint32(ifindex), entry, ebpf.UpdateAny|ebpf.UpdateLock)
}
