package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// Address says where one Ethernet address of an overlay is.
type Address struct {
	MAC net.HardwareAddr
	IPs []netip.Addr // that this Ethernet address answers for
	// Host is the underlay address of the host that has it.
	Host netip.Addr
	// Local is the tap or endpoint device of it on this host, if there is
	// one. Used when Host is this host, and with Hold.
	Local string
	// Hold says that the address has moved to Host, but frames that come
	// here for it still go into Local, whose gate redirects them.
	Hold bool
}

// station is an Ethernet address as a comparable value.
type station [6]byte

// entries is everything that one network's map sets in the kernel.
type entries struct {
	ports   map[station]int        // bridge forwarding: interface index
	remotes map[station]netip.Addr // VXLAN forwarding
	flood   map[netip.Addr]bool    // hosts that get broadcast and multicast
	answers map[netip.Addr]station // ARP and neighbour discovery
}

func newEntries() entries {
	return entries{
		ports:   make(map[station]int),
		remotes: make(map[station]netip.Addr),
		flood:   make(map[netip.Addr]bool),
		answers: make(map[netip.Addr]station),
	}
}

// ApplyAddresses makes the kernel's entries of a network exactly those of the
// given full map, by changing what differs; an address that moves is changed
// in one step and has no gap. Broadcast and multicast go to the hosts of all
// addresses and to the hosts in also: every host that takes part without an
// address in the map, above all the source of a migration that still forwards.
// Entries that name a device which is not here are left out, the rest is set,
// and the error says so.
func (h *Host) ApplyAddresses(name fleet.NetworkName, list []Address, also ...netip.Addr) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	o, err := h.find("set addresses of", name)
	if err != nil {
		return err
	}
	want, wrong := h.wanted(o, list, also)
	have, err := h.present(o)
	if err != nil {
		return fmt.Errorf("read addresses of network %s: %w", name, err)
	}
	if err := h.applyEntries(o, have, want); err != nil {
		return fmt.Errorf("set addresses of network %s: %w", name, err)
	}
	return wrong
}

// wanted translates the map into entries, and reports what it cannot.
func (h *Host) wanted(o overlay, list []Address, also []netip.Addr) (entries, error) {
	e := newEntries()
	var errs []error
	for _, host := range also {
		e.flood[host.Unmap()] = true
	}
	for _, address := range list {
		if err := h.want(o, address, &e); err != nil {
			errs = append(errs, &fleet.Error{Code: fleet.Invalid, Op: "set address", Subject: address.MAC.String(), Cause: err.Error()})
		}
	}
	delete(e.flood, h.underlay)
	delete(e.flood, netip.Addr{})
	return e, errors.Join(errs...)
}

func (h *Host) want(o overlay, address Address, e *entries) error {
	host := address.Host.Unmap()
	if len(address.MAC) != len(station{}) || address.MAC[0]&1 != 0 {
		return errors.New("it is not a unicast Ethernet address")
	}
	if !host.IsValid() || host.Is4() != h.underlay.Is4() {
		return fmt.Errorf("host %v is not of the family of this host's underlay address %v", address.Host, h.underlay)
	}
	mac := station(address.MAC)
	e.flood[host] = true
	for _, ip := range address.IPs {
		if ip = ip.Unmap(); ip.Is4() || h.ipv6 {
			e.answers[ip] = mac
		}
	}
	if host != h.underlay && !address.Hold {
		e.ports[mac], e.remotes[mac] = o.vxlan.Attrs().Index, host
		return nil
	}
	if address.Local == "" {
		return errors.New("it is said to be here, but not at which device")
	}
	link, err := h.device(address.Local)
	if err != nil {
		return err
	}
	if link == nil || link.Attrs().MasterIndex != o.bridge.Attrs().Index {
		return fmt.Errorf("device %s is not in the network", address.Local)
	}
	e.ports[mac] = link.Attrs().Index
	return nil
}

// present reads the entries that an ApplyAddresses of any process has set.
func (h *Host) present(o overlay) (entries, error) {
	e := newEntries()
	bridge, vxlan := o.bridge.Attrs().Index, o.vxlan.Attrs().Index
	forwarding, err := retryDump(func() ([]netlink.Neigh, error) { return h.nl.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return e, err
	}
	for _, n := range forwarding {
		if len(n.HardwareAddr) != len(station{}) {
			continue
		}
		mac := station(n.HardwareAddr)
		remote, _ := netip.AddrFromSlice(n.IP)
		remote = remote.Unmap()
		switch {
		case n.LinkIndex == vxlan && n.Flags&netlink.NTF_SELF != 0 && mac == station{}:
			e.flood[remote] = true
		case n.LinkIndex == vxlan && n.Flags&netlink.NTF_SELF != 0:
			e.remotes[mac] = remote
		case n.MasterIndex == bridge && n.State&netlink.NUD_NOARP != 0:
			e.ports[mac] = n.LinkIndex
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		neighbours, err := retryDump(func() ([]netlink.Neigh, error) { return h.nl.NeighList(bridge, family) })
		if err != nil {
			return e, err
		}
		for _, n := range neighbours {
			ip, ok := netip.AddrFromSlice(n.IP)
			if ok && n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == len(station{}) {
				e.answers[ip.Unmap()] = station(n.HardwareAddr)
			}
		}
	}
	return e, nil
}

// applyEntries turns have into want. The way to a remote address is known
// before the bridge sends frames there, and forgotten after it has stopped.
func (h *Host) applyEntries(o overlay, have, want entries) error {
	vxlan := o.vxlan.Attrs().Index
	return errors.Join(
		differences(have.flood, want.flood, func(host netip.Addr, _ bool) error {
			return h.nl.NeighAppend(floodEntry(vxlan, host))
		}, nil),
		differences(have.remotes, want.remotes, func(mac station, host netip.Addr) error {
			return h.nl.NeighSet(remoteEntry(vxlan, mac, host))
		}, nil),
		differences(have.ports, want.ports, func(mac station, port int) error {
			return h.nl.NeighSet(portEntry(port, mac))
		}, func(mac station, port int) error {
			return h.nl.NeighDel(portEntry(port, mac))
		}),
		differences(have.remotes, want.remotes, nil, func(mac station, host netip.Addr) error {
			return h.nl.NeighDel(remoteEntry(vxlan, mac, host))
		}),
		differences(have.flood, want.flood, nil, func(host netip.Addr, _ bool) error {
			return h.nl.NeighDel(floodEntry(vxlan, host))
		}),
		differences(have.answers, want.answers, func(ip netip.Addr, mac station) error {
			return h.nl.NeighSet(answerEntry(o.bridge.Attrs().Index, ip, mac))
		}, func(ip netip.Addr, mac station) error {
			return h.nl.NeighDel(answerEntry(o.bridge.Attrs().Index, ip, mac))
		}))
}

// differences calls set for each entry that is new or other than it was, then
// remove for each that is no longer wanted. Either may be nil. An entry that
// vanished with its device meanwhile needs no removal.
func differences[K comparable, V comparable](have, want map[K]V, set, remove func(K, V) error) error {
	var errs []error
	for key, value := range want {
		if old, ok := have[key]; set != nil && (!ok || old != value) {
			errs = append(errs, set(key, value))
		}
	}
	for key, value := range have {
		if _, ok := want[key]; remove != nil && !ok {
			err := remove(key, value)
			if !slices.ContainsFunc([]error{unix.ENOENT, unix.ENODEV}, func(gone error) bool { return errors.Is(err, gone) }) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// static is the state of an entry towards a port. NUD_PERMANENT would mean
// "an address of the bridge itself": its frames go up the host's stack.
const static = netlink.NUD_NOARP | netlink.NUD_REACHABLE

func portEntry(port int, mac station) *netlink.Neigh {
	return &netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: port, State: static,
		Flags: netlink.NTF_MASTER, HardwareAddr: mac[:]}
}

func remoteEntry(vxlan int, mac station, host netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{Family: unix.AF_BRIDGE, LinkIndex: vxlan, State: static,
		Flags: netlink.NTF_SELF, HardwareAddr: mac[:], IP: host.AsSlice()}
}

// floodEntry: the all-zero address stands for every one without an entry.
func floodEntry(vxlan int, host netip.Addr) *netlink.Neigh {
	return remoteEntry(vxlan, station{}, host)
}

func answerEntry(bridge int, ip netip.Addr, mac station) *netlink.Neigh {
	family := unix.AF_INET6
	if ip.Is4() {
		family = unix.AF_INET
	}
	return &netlink.Neigh{Family: family, LinkIndex: bridge, State: netlink.NUD_PERMANENT,
		HardwareAddr: mac[:], IP: ip.AsSlice()}
}
