package network

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

const tapAliasPrefix = aliasPrefix + "tap of network "

func tapAlias(network fleet.NetworkName) string { return tapAliasPrefix + string(network) }

func isTap(link netlink.Link) bool {
	return link.Type() == "tuntap" && strings.HasPrefix(link.Attrs().Name, TapPrefix)
}

// TapInfo is what the kernel knows of one tap of ours.
type TapInfo struct {
	Name     string
	Network  fleet.NetworkName
	Gated    bool             // false: no gate is set, and nothing passes
	MAC      net.HardwareAddr // the guest's; nil without a gate
	Gate     Gate             // zero without a gate
	Open     bool             // some process has a queue of it open
	Counters Counters
}

// Counters counts the frames at one gate since the tap was made. A large
// segment that the guest's network card would split counts once.
type Counters struct {
	ToGuestPassed     uint64
	ToGuestRedirected uint64
	ToGuestDropped    uint64
	FromGuestPassed   uint64
	FromGuestDropped  uint64
}

// counterEntry is struct counters of bpf/gate.c, one per CPU.
type counterEntry Counters

// Taps lists the taps of the namespace by name, whoever made them.
func (h *Host) Taps() ([]TapInfo, error) {
	links, err := h.links()
	if err != nil {
		return nil, err
	}
	var taps []TapInfo
	for _, link := range links {
		if !isTap(link) {
			continue
		}
		info, err := h.tapInfo(link)
		if err != nil {
			return nil, fmt.Errorf("read tap %s: %w", link.Attrs().Name, err)
		}
		taps = append(taps, info)
	}
	slices.SortFunc(taps, func(a, b TapInfo) int { return cmp.Compare(a.Name, b.Name) })
	return taps, nil
}

func (h *Host) tapInfo(link netlink.Link) (TapInfo, error) {
	attrs := link.Attrs()
	info := TapInfo{Name: attrs.Name, Open: attrs.RawFlags&unix.IFF_LOWER_UP != 0}
	if network, ok := strings.CutPrefix(attrs.Alias, tapAliasPrefix); ok {
		info.Network = fleet.NetworkName(network)
	}
	entry, ok, err := h.gateOf(attrs.Index)
	if err != nil || !ok {
		return info, err
	}
	info.Gated, info.MAC, info.Gate = true, slices.Clone(entry.MAC[:]), entry.gate(h.underlay)
	info.Counters, err = h.counters(attrs.Index)
	return info, err
}

// Counters reads the counters of the tap.
func (t *Tap) Counters() (Counters, error) { return t.host.counters(t.ifindex) }

func (h *Host) counters(ifindex int) (sum Counters, err error) {
	var perCPU []counterEntry
	err = h.filter.GwCounters.Lookup(uint32(ifindex), &perCPU)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Counters{}, nil
	}
	if err != nil {
		return Counters{}, fmt.Errorf("read counters: %w", err)
	}
	for _, c := range perCPU {
		sum.ToGuestPassed += c.ToGuestPassed
		sum.ToGuestRedirected += c.ToGuestRedirected
		sum.ToGuestDropped += c.ToGuestDropped
		sum.FromGuestPassed += c.FromGuestPassed
		sum.FromGuestDropped += c.FromGuestDropped
	}
	return sum, nil
}

// RemoveTap deletes a tap by name, for one that Taps shows and nobody has
// adopted. A tap that is not there is no error.
func (h *Host) RemoveTap(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	link, err := h.device(name)
	if err != nil || link == nil {
		return err
	}
	if !isTap(link) {
		return &fleet.Error{Code: fleet.Invalid, Op: "remove tap", Subject: name, Cause: "the device is not a tap of Godwit"}
	}
	return h.removeTap(name, link.Attrs().Index)
}

// removeTap deletes the device if it is still the one with that index.
func (h *Host) removeTap(name string, ifindex int) error {
	link, err := h.device(name)
	if err != nil {
		return err
	}
	if link != nil && link.Attrs().Index == ifindex {
		if err := h.deleteLink(link); err != nil {
			return err
		}
	}
	return h.forget(uint32(ifindex))
}
