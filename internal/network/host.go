package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

const (
	tunnelDevice = "gw-tun"
	tunnelPort   = 4790
	overlayPort  = 4789 // RFC 7348, section 5

	// The alias of each device that we make says that it is ours and for what.
	aliasPrefix = "godwit "
)

// Config says how a host takes part in the fleet's network.
type Config struct {
	// Underlay is this host's tunnel end point: an address of this host that
	// all others reach. All hosts of a fleet use the same address family.
	Underlay netip.Addr
}

// Host is the data plane of one host: what lies in one network namespace.
type Host struct {
	underlay netip.Addr
	ns       namespace
	nl       *netlink.Handle
	filter   *filters
	ports    ports
	ipv6     bool // the kernel speaks it
	cpus     int  // that the kernel counts per-CPU values for

	mu sync.Mutex // serialises the making and removing of devices and entries
}

// Open prepares the network namespace of the calling thread, or takes over
// what an earlier process left there: taps keep their gates and traffic.
// Errors: fleet.Invalid for the configuration, fleet.Unsupported where the
// kernel lacks something, fleet.Conflict where a device of another maker is in
// the way.
func Open(cfg Config) (*Host, error) {
	if !cfg.Underlay.IsValid() || cfg.Underlay.IsUnspecified() || cfg.Underlay.Zone() != "" {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "open", Subject: "network",
			Cause: fmt.Sprintf("%v cannot be a tunnel end point", cfg.Underlay),
			Hint:  "give an address of this host that the other hosts reach"}
	}
	ns, err := callersNamespace()
	if err != nil {
		return nil, err
	}
	h := &Host{underlay: cfg.Underlay.Unmap(), ns: ns, ports: ports{inject: -1, bypass: -1}}
	if err := h.open(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func (h *Host) open() error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count CPUs: %w", err)
	}
	h.cpus = cpus
	if h.ipv6, err = h.ns.hasIPv6(); err != nil {
		return fmt.Errorf("look for IPv6: %w", err)
	}
	err = h.ns.do(func() (err error) {
		if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		h.ports, err = openPorts()
		return err
	})
	if err != nil {
		return err
	}
	tunnel, err := h.ensureTunnelDevice()
	if err != nil {
		return err
	}
	if err := h.loadFilters(tunnel); err != nil {
		return err
	}
	if err := h.attach(tunnel, netlink.HANDLE_MIN_INGRESS, h.filter.FromTunnel); err != nil {
		return err
	}
	if err := h.renewFilters(); err != nil {
		return err
	}
	return h.sweep()
}

// renewFilters puts this agent's programs at the devices of an earlier one.
func (h *Host) renewFilters() error {
	links, err := h.links()
	if err != nil {
		return err
	}
	for _, link := range links {
		switch {
		case isTap(link):
			err = h.attachGate(link)
		case isOverlayBridge(link):
			err = h.seal(link)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Close releases file descriptors. Everything in the kernel stays as set.
func (h *Host) Close() error {
	err := h.ports.close()
	if h.filter != nil {
		err = errors.Join(err, h.filter.close())
	}
	if h.nl != nil {
		h.nl.Close()
	}
	return errors.Join(err, h.ns.close())
}

// Purge removes every device made by this package in the namespace, and with
// them all filters and entries. Interfaces of others are left alone; those
// that were attached to an overlay are merely released.
func (h *Host) Purge() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	links, err := h.links()
	if err != nil {
		return err
	}
	var errs []error
	for _, link := range links {
		if isTap(link) || strings.HasPrefix(link.Attrs().Alias, aliasPrefix) {
			errs = append(errs, h.deleteLink(link))
		}
	}
	return errors.Join(append(errs, h.sweep())...)
}

// sweep removes map entries of interfaces that are gone, such as taps that
// somebody else deleted. The caller holds h.mu, or is Open.
func (h *Host) sweep() error {
	links, err := h.links()
	if err != nil {
		return err
	}
	present := make(map[uint32]bool)
	for _, link := range links {
		if isTap(link) {
			present[uint32(link.Attrs().Index)] = true
		}
	}
	known, err := h.knownInterfaces()
	if err != nil {
		return err
	}
	for ifindex := range known {
		if present[ifindex] {
			continue
		}
		if err := h.forget(ifindex); err != nil {
			return err
		}
	}
	return nil
}

// links lists the devices of the namespace.
func (h *Host) links() ([]netlink.Link, error) {
	links, err := retryDump(h.nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return links, nil
}

// retryDump repeats a listing that the kernel says was disturbed by a change.
func retryDump[T any](list func() ([]T, error)) ([]T, error) {
	const attempts = 16
	for range attempts - 1 {
		entries, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return entries, err
		}
	}
	return list()
}

// device finds a device by name; nil if there is none.
func (h *Host) device(name string) (netlink.Link, error) {
	link, err := h.nl.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	return link, nil
}

// deleteLink deletes a device; that it is gone already is no error.
func (h *Host) deleteLink(link netlink.Link) error {
	err := h.nl.LinkDel(link)
	if err == nil || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("delete device %s: %w", link.Attrs().Name, err)
}

// ensureDevice finds or makes a virtual device and marks it as ours. The
// device stays down.
func (h *Host) ensureDevice(want netlink.Link, alias string) (netlink.Link, error) {
	name := want.Attrs().Name
	err := h.nl.LinkAdd(want)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make device %s: %w", name, err)
	}
	existed := err != nil
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find device %s: %w", name, err)
	}
	if link.Type() != want.Type() || existed && link.Attrs().Alias != alias && link.Attrs().Alias != "" {
		return nil, &fleet.Error{Code: fleet.Conflict, Op: "make device", Subject: name,
			Cause: "a device of that name and another purpose is there",
			Hint:  "rename or delete it: ip link show dev " + name}
	}
	if err := h.nl.LinkSetAlias(link, alias); err != nil {
		return nil, fmt.Errorf("mark device %s: %w", name, err)
	}
	if err := h.ns.switchIPv6(name, false); err != nil {
		return nil, fmt.Errorf("switch IPv6 off at %s: %w", name, err)
	}
	return link, nil
}

// setUp sets a VXLAN device up, which opens its port in the kernel.
// fleet.Conflict when something else on this host has that.
func (h *Host) setUp(vxlan netlink.Link, port int) error {
	err := h.nl.LinkSetUp(vxlan)
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	return &fleet.Error{Code: fleet.Conflict, Op: "set up device", Subject: vxlan.Attrs().Name,
		Cause: fmt.Sprintf("UDP port %d, which it needs, is in use on this host by a program, or by a VXLAN device that is not Godwit's", port),
		Hint:  fmt.Sprintf("free the port: `ss -ulpn 'sport = :%d'` names a program that has it; if none, `ip -d link show type vxlan` shows the devices", port)}
}
