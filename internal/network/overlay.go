package network

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"

	"godwit.dev/godwit/internal/fleet"
)

const (
	bridgePrefix       = "gwb-" // followed by the VNI
	vxlanPrefix        = "gwx-"
	overlayAliasPrefix = aliasPrefix + "overlay "
	// defaultMTU is that of a tap outside of an overlay.
	defaultMTU = 1500
	// maxVNI is the largest VXLAN network identifier (RFC 7348, section 5).
	maxVNI = 1<<24 - 1
)

// Network is an overlay network as one host sees it: a bridge for what is
// here, and a VXLAN device for what is on other hosts. Neither learns:
// ApplyAddresses says where everything is.
type Network struct {
	Name fleet.NetworkName
	VNI  uint32 // VXLAN network identifier, unique in the fleet, 1 to 2^24-1
	MTU  int    // of the guests; the underlay's must be 50 bytes more (70 with IPv6)
}

func overlayAlias(name fleet.NetworkName) string { return overlayAliasPrefix + string(name) }

func isOverlayBridge(link netlink.Link) bool {
	return link.Type() == "bridge" && strings.HasPrefix(link.Attrs().Alias, overlayAliasPrefix)
}

// overlay is the pair of devices of one network.
type overlay struct {
	bridge, vxlan netlink.Link
}

// EnsureNetwork makes the network's devices, or adapts them. fleet.Conflict if
// the network is here with another VNI, or the VNI with another network.
func (h *Host) EnsureNetwork(n Network) error {
	if err := n.check(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	vni := strconv.FormatUint(uint64(n.VNI), 10)
	present, err := h.findBridge(n.Name)
	if err != nil {
		return err
	}
	if present != nil && present.Attrs().Name != bridgePrefix+vni {
		return &fleet.Error{Code: fleet.Conflict, Op: "set up", Subject: "network " + string(n.Name),
			Cause: fmt.Sprintf("it is here as %s, not with VNI %s", present.Attrs().Name, vni),
			Hint:  "remove the network from this host first"}
	}
	o, err := h.ensureOverlay(n, vni)
	if err != nil {
		return err
	}
	return h.setUpOverlay(o, n.MTU)
}

func (n Network) check() error {
	var cause string
	switch {
	case n.Name == "":
		cause = "a network has a name"
	case n.VNI == 0 || n.VNI > maxVNI:
		cause = fmt.Sprintf("VNI %d is not in 1 to %d", n.VNI, maxVNI)
	case n.MTU < minMTU || n.MTU > maxMTU:
		cause = fmt.Sprintf("an MTU is %d to %d bytes, not %d", minMTU, maxMTU, n.MTU)
	default:
		return nil
	}
	return &fleet.Error{Code: fleet.Invalid, Op: "set up", Subject: "network " + string(n.Name), Cause: cause}
}

// ensureOverlay makes the devices, down and unconnected.
func (h *Host) ensureOverlay(n Network, vni string) (overlay, error) {
	var no bool
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgePrefix + vni
	bridge, err := h.ensureDevice(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &no}, overlayAlias(n.Name))
	if err != nil {
		return overlay{}, err
	}
	attrs.Name = vxlanPrefix + vni
	vxlan, err := h.ensureDevice(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(n.VNI), Port: overlayPort,
		SrcAddr: net.IP(h.underlay.AsSlice()), Learning: false, UDP6ZeroCSumRx: true}, overlayAlias(n.Name))
	return overlay{bridge: bridge, vxlan: vxlan}, err
}

func (h *Host) setUpOverlay(o overlay, mtu int) error {
	steps := []func() error{
		func() error { return h.nl.LinkSetMTU(o.vxlan, mtu) },
		func() error { return h.nl.LinkSetMTU(o.bridge, mtu) },
		func() error { return h.seal(o.bridge) },
		func() error { return h.holdNeighbours(o.bridge) },
		func() error { return h.join(o.vxlan, o.bridge) },
		// Requests for an address that is known and remote are answered here.
		func() error { return h.nl.LinkSetBrNeighSuppress(o.vxlan, true) },
		func() error { return h.setUp(o.vxlan, overlayPort) },
		func() error { return h.nl.LinkSetUp(o.bridge) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("set up %s: %w", o.bridge.Attrs().Name, err)
		}
	}
	return nil
}

// seal keeps the host's network stack and the overlay apart.
func (h *Host) seal(bridge netlink.Link) error {
	return errors.Join(
		h.attach(bridge, netlink.HANDLE_MIN_INGRESS, h.filter.Seal),
		h.attach(bridge, netlink.HANDLE_MIN_EGRESS, h.filter.Seal))
}

// holdNeighbours lets a sealed bridge have IPv6 neighbours, from which its
// ports are answered, but no address of its own.
func (h *Host) holdNeighbours(bridge netlink.Link) error {
	if !h.ipv6 {
		return nil
	}
	const none = 1 // IN6_ADDR_GEN_MODE_NONE of linux/if_link.h
	return errors.Join(
		h.nl.LinkSetIP6AddrGenMode(bridge, none),
		h.ns.switchIPv6(bridge.Attrs().Name, true))
}

// join makes a device a port of a bridge, one that neither learns nor gets
// frames for addresses that nobody has announced. A nil bridge is none.
func (h *Host) join(link, bridge netlink.Link) error {
	if bridge == nil {
		return nil
	}
	if link.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := h.nl.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("put %s into %s: %w", link.Attrs().Name, bridge.Attrs().Name, err)
		}
	}
	if err := errors.Join(h.nl.LinkSetLearning(link, false), h.nl.LinkSetFlood(link, false)); err != nil {
		return fmt.Errorf("set up bridge port %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// findBridge gives the bridge of a network; nil if the network is not here.
func (h *Host) findBridge(name fleet.NetworkName) (netlink.Link, error) {
	links, err := h.links()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if isOverlayBridge(link) && link.Attrs().Alias == overlayAlias(name) {
			return link, nil
		}
	}
	return nil, nil
}

// find gives the devices of a network that must be here.
func (h *Host) find(op string, name fleet.NetworkName) (overlay, error) {
	bridge, err := h.findBridge(name)
	if err != nil {
		return overlay{}, err
	}
	if bridge == nil {
		return overlay{}, &fleet.Error{Code: fleet.NotFound, Op: op, Subject: "network " + string(name),
			Cause: "the network is not set up on this host"}
	}
	vni := strings.TrimPrefix(bridge.Attrs().Name, bridgePrefix)
	vxlan, err := h.nl.LinkByName(vxlanPrefix + vni)
	if err != nil {
		return overlay{}, fmt.Errorf("find the VXLAN device of network %s: %w", name, err)
	}
	return overlay{bridge: bridge, vxlan: vxlan}, nil
}

// bridgeOf gives the bridge that a tap joins, nil for the network "", and
// completes the tap's MTU.
func (h *Host) bridgeOf(cfg *TapConfig) (netlink.Link, error) {
	switch {
	case cfg.Bridge != "":
		return h.providerBridge(cfg)
	case cfg.Network == "":
		cfg.MTU = cmp.Or(cfg.MTU, defaultMTU)
		return nil, nil
	}
	o, err := h.find("create tap in", cfg.Network)
	if err != nil {
		return nil, err
	}
	cfg.MTU = cmp.Or(cfg.MTU, o.vxlan.Attrs().MTU)
	return o.bridge, nil
}

// RemoveNetwork deletes the network's devices here and releases attached
// endpoints. fleet.Conflict while a tap is in it; no error if it is not here.
func (h *Host) RemoveNetwork(name fleet.NetworkName) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	bridge, err := h.findBridge(name)
	if err != nil || bridge == nil {
		return err
	}
	links, err := h.links()
	if err != nil {
		return err
	}
	for _, link := range links {
		if isTap(link) && link.Attrs().MasterIndex == bridge.Attrs().Index {
			return &fleet.Error{Code: fleet.Conflict, Op: "remove", Subject: "network " + string(name),
				Cause: "tap " + link.Attrs().Name + " is in it"}
		}
	}
	vxlan, err := h.device(vxlanPrefix + strings.TrimPrefix(bridge.Attrs().Name, bridgePrefix))
	if err != nil {
		return err
	}
	if vxlan != nil {
		if err := h.deleteLink(vxlan); err != nil {
			return err
		}
	}
	return h.deleteLink(bridge)
}

// AttachEndpoint puts an operator's own interface, such as one end of a veth
// pair that leads to a gateway, into an overlay and sets it up.
func (h *Host) AttachEndpoint(name fleet.NetworkName, device string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	o, err := h.find("attach "+device+" to", name)
	if err != nil {
		return err
	}
	link, err := h.endpoint("attach", device)
	if err != nil {
		return err
	}
	if err := h.join(link, o.bridge); err != nil {
		return err
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", device, err)
	}
	return nil
}

// KeepEndpoints takes every interface out of the overlay that is neither in
// devices nor of our making. They stay up.
func (h *Host) KeepEndpoints(name fleet.NetworkName, devices []string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	o, err := h.find("detach endpoints from", name)
	if err != nil {
		return err
	}
	links, err := h.links()
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.MasterIndex != o.bridge.Attrs().Index || ours(link) || slices.Contains(devices, attrs.Name) {
			continue
		}
		if err := h.nl.LinkSetNoMaster(link); err != nil {
			errs = append(errs, fmt.Errorf("take %s out of %s: %w", attrs.Name, o.bridge.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

// ours: the device is of our making.
func ours(link netlink.Link) bool {
	return isTap(link) || strings.HasPrefix(link.Attrs().Alias, aliasPrefix)
}

// endpoint finds an interface that is not of our making.
func (h *Host) endpoint(op, device string) (netlink.Link, error) {
	link, err := h.device(device)
	if err != nil {
		return nil, err
	}
	if link == nil {
		return nil, &fleet.Error{Code: fleet.NotFound, Op: op, Subject: device, Cause: "there is no such interface"}
	}
	if ours(link) {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: op, Subject: device, Cause: "the interface is Godwit's own"}
	}
	return link, nil
}
