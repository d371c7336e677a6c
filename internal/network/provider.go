package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// HostNetworks gives what the host has of networks by itself: the first
// fleet.MaxBridges bridges, by name, that are not of our making, and the MTU of
// the device with its underlay address.
func (h *Host) HostNetworks() (fleet.HostNetworks, error) {
	var found fleet.HostNetworks
	links, err := h.links()
	if err != nil {
		return found, err
	}
	addresses, err := retryDump(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return found, fmt.Errorf("list addresses: %w", err)
	}
	at := slices.IndexFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(net.IP(h.underlay.AsSlice())) })
	for _, link := range links {
		attrs := link.Attrs()
		if at >= 0 && addresses[at].LinkIndex == attrs.Index {
			found.UnderlayMTU = attrs.MTU
		}
		// A name that no network can be given, or is told of, is no use.
		if bridge, ok := link.(*netlink.Bridge); ok && !ours(link) && fleet.CheckDevice(attrs.Name) == nil {
			found.Bridges = append(found.Bridges, fleet.Bridge{Name: attrs.Name, MTU: attrs.MTU, FiltersVLANs: filtersVLANs(bridge)})
		}
	}
	slices.SortFunc(found.Bridges, func(a, b fleet.Bridge) int { return cmp.Compare(a.Name, b.Name) })
	found.Bridges = found.Bridges[:min(len(found.Bridges), fleet.MaxBridges)]
	return found, nil
}

func filtersVLANs(bridge *netlink.Bridge) bool {
	return bridge.VlanFiltering != nil && *bridge.VlanFiltering
}

// providerBridge gives the operator's bridge that a tap joins, and has the tap as
// large an MTU: a smaller one would become the bridge's. What cfg says is what the
// guest needs.
func (h *Host) providerBridge(cfg *TapConfig) (netlink.Link, error) {
	link, err := h.device(cfg.Bridge)
	if err != nil {
		return nil, err
	}
	bridge, isBridge := link.(*netlink.Bridge)
	refuse := func(code fleet.Code, hint, cause string, args ...any) error {
		return &fleet.Error{Code: code, Op: "create tap in", Subject: "bridge " + cfg.Bridge, Cause: fmt.Sprintf(cause, args...), Hint: hint}
	}
	switch {
	case link == nil:
		return nil, refuse(fleet.NotFound, "make it, with the uplink as its port: ip link add "+cfg.Bridge+" type bridge", "this host has no such bridge")
	case !isBridge || ours(link):
		return nil, refuse(fleet.Conflict, "name a bridge of your own", "the device of that name is a %s, and not a bridge of this host's operator", link.Type())
	case link.Attrs().Flags&net.FlagUp == 0:
		return nil, refuse(fleet.Failed, "ip link set "+cfg.Bridge+" up", "it is down")
	case cfg.MTU > link.Attrs().MTU:
		return nil, refuse(fleet.Unsupported, "raise it, at its uplink too", "it has an MTU of %d, network %s needs %d", link.Attrs().MTU, cfg.Network, cfg.MTU)
	case cfg.VLAN != 0 && !filtersVLANs(bridge):
		return nil, refuse(fleet.Unsupported, "ip link set "+cfg.Bridge+" type bridge vlan_filtering 1", "it does not filter VLANs, network %s is VLAN %d of it", cfg.Network, cfg.VLAN)
	}
	cfg.MTU = link.Attrs().MTU
	return bridge, nil
}

// joinProvider makes a tap a port of the operator's bridge.
func (h *Host) joinProvider(cfg TapConfig, link, bridge netlink.Link) error {
	if err := h.nl.LinkSetHardwareAddr(link, highAddress(cfg)); err != nil {
		return fmt.Errorf("set the address of %s: %w", cfg.Name, err)
	}
	if err := h.nl.LinkSetMaster(link, bridge); err != nil {
		return fmt.Errorf("put %s into %s: %w", cfg.Name, cfg.Bridge, err)
	}
	if cfg.VLAN == 0 {
		return nil
	}
	return h.joinVLAN(link, bridge.(*netlink.Bridge), cfg.VLAN)
}

// highAddress gives a tap's own address: a bridge that was given none has the lowest of
// its ports'. The guest's must be another, since frames for a port's are the host's.
func highAddress(cfg TapConfig) net.HardwareAddr {
	high := slices.Clone(cfg.MAC)
	high[0] = 0xfe
	if slices.Equal(high, cfg.MAC) {
		high[5] ^= 0xff
	}
	return high
}

// joinVLAN has the guest in one VLAN, whose frames it gets and sends untagged.
func (h *Host) joinVLAN(link netlink.Link, bridge *netlink.Bridge, vlan uint16) error {
	if own := bridge.VlanDefaultPVID; own != nil && *own != 0 && *own != vlan {
		if err := h.nl.BridgeVlanDel(link, *own, false, false, false, true); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("take %s out of VLAN %d: %w", link.Attrs().Name, *own, err)
		}
	}
	if err := h.nl.BridgeVlanAdd(link, vlan, true, true, false, true); err != nil {
		return fmt.Errorf("put %s into VLAN %d: %w", link.Attrs().Name, vlan, err)
	}
	return nil
}

// bridgePoll is how often AwaitForwarding looks. The kernel tells of a port's state
// only where the spanning tree protocol changes it.
const bridgePoll = 5 * time.Millisecond

// AwaitForwarding waits until the tap's bridge, if it has one, passes frames to it.
// That takes the kernel a moment after the tap is up, and a bridge that speaks the
// spanning tree protocol twice its forward delay.
func (t *Tap) AwaitForwarding(ctx context.Context) error {
	late, err := poll(ctx, bridgePoll, func() (bool, error) {
		state, found, err := t.host.portState(t.ifindex)
		if err == nil && !found && t.sticky {
			err = &fleet.Error{
				Code: fleet.NotFound, Op: "wait for the bridge of", Subject: t.name, Cause: "somebody has removed the bridge of its network",
				Hint: "make it again",
			}
		}
		return !found || state == bridgeForwarding, err
	})
	if late {
		return &fleet.Error{
			Code: fleet.Deadline, Op: "wait for the bridge of", Subject: t.name, Err: ctx.Err(),
			Cause: "it does not pass frames to it yet",
			Hint:  "if the bridge speaks the spanning tree protocol, lower its forward_delay, or switch it off: ip link set BRIDGE type bridge stp_state 0",
		}
	}
	return err
}

// Of linux/if_bridge.h and linux/if_link.h.
const (
	bridgeForwarding = 3
	brportState      = 1
)

// portState gives the state of a bridge's port; not found if the device is none.
func (h *Host) portState(ifindex int) (state byte, found bool, err error) {
	var messages [][]byte
	err = h.ns.do(func() (err error) {
		request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		request.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		messages, err = retryDump(func() ([][]byte, error) { return request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK) })
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("list bridge ports: %w", err)
	}
	for _, message := range messages {
		info := nl.DeserializeIfInfomsg(message)
		if int(info.Index) == ifindex {
			return portStateOf(message[info.Len():])
		}
	}
	return 0, false, nil
}

func portStateOf(message []byte) (state byte, found bool, err error) {
	port, found, err := attrOf(message, unix.IFLA_PROTINFO|unix.NLA_F_NESTED)
	if err != nil || !found {
		return 0, false, err
	}
	value, found, err := attrOf(port, brportState)
	if err != nil || !found || len(value) != 1 {
		return 0, false, err
	}
	return value[0], true, nil
}

// attrOf gives one attribute of those that follow each other in a message.
func attrOf(message []byte, kind uint16) (value []byte, found bool, err error) {
	attrs, err := nl.ParseRouteAttr(message)
	if err != nil {
		return nil, false, fmt.Errorf("read attributes of a bridge port: %w", err)
	}
	for _, attr := range attrs {
		if attr.Attr.Type == kind {
			return attr.Value, true, nil
		}
	}
	return nil, false, nil
}

// Yield lets the provider's bridge learn again where the guest is, and waits until
// it has heard it at another port. Frames of the host's own guests, which came into
// the tap until then, take their own way from there on; those that still come for it
// from outside are lost.
func (t *Tap) Yield(ctx context.Context) error {
	h := t.host
	filters, err := h.inFilter(t.ifindex)
	if err != nil {
		return err
	}
	learnt := portEntry(t.ifindex, station(t.mac))
	learnt.State, learnt.Vlan = netlink.NUD_REACHABLE, int(t.vlan)
	if err := h.nl.NeighSet(learnt); err != nil {
		return fmt.Errorf("yield the address of %s: %w", t.name, err)
	}
	late, err := poll(ctx, bridgePoll, func() (bool, error) {
		here, err := h.hasEntry(t.ifindex, station(t.mac), filters)
		return !here, err
	})
	if late {
		return fmt.Errorf("wait until the bridge of %s has heard the guest elsewhere: %w", t.name, ctx.Err())
	}
	return err
}

// inFilter tells whether a port's bridge filters VLANs.
func (h *Host) inFilter(port int) (bool, error) {
	link, err := h.nl.LinkByIndex(port)
	if err != nil {
		return false, fmt.Errorf("look at a bridge port: %w", err)
	}
	master, err := h.nl.LinkByIndex(link.Attrs().MasterIndex)
	if err != nil {
		return false, fmt.Errorf("look at the bridge of %s: %w", link.Attrs().Name, err)
	}
	bridge, ok := master.(*netlink.Bridge)
	return ok && filtersVLANs(bridge), nil
}

// hasEntry tells whether the bridge of a port gives it the frames for an address. In
// one that filters VLANs every frame is in one, and an entry of none is for nothing.
func (h *Host) hasEntry(port int, mac station, filters bool) (bool, error) {
	entries, err := retryDump(func() ([]netlink.Neigh, error) { return h.nl.NeighList(port, unix.AF_BRIDGE) })
	if err != nil {
		return false, fmt.Errorf("list forwarding entries: %w", err)
	}
	return slices.ContainsFunc(entries, func(n netlink.Neigh) bool {
		return n.LinkIndex == port && n.MasterIndex != 0 && len(n.HardwareAddr) == len(mac) && station(n.HardwareAddr) == mac && (n.Vlan != 0 || !filters)
	}), nil
}

// LastRedirect tells how long ago the gate last redirected a unicast frame that came
// from outside of the host; false if it never has.
func (t *Tap) LastRedirect() (ago time.Duration, ever bool, err error) {
	var last uint64
	err = t.host.filter.GwRedirected.Lookup(uint32(t.ifindex), &last)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read when %s has redirected: %w", t.name, err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, false, fmt.Errorf("read the clock: %w", err)
	}
	return time.Duration(now.Nano() - int64(last)), true, nil
}
