package network

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"godwit.dev/godwit/internal/fleet"
)

// ensureTunnelDevice makes the one VXLAN device that carries the frames of all
// migrations. It has no identifier and no remote of its own ("external"): the
// gates give both with each frame.
func (h *Host) ensureTunnelDevice() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = tunnelDevice
	link, err := h.ensureDevice(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Learning: false, Port: tunnelPort,
		UDP6ZeroCSumRx: true}, aliasPrefix+"migration tunnels")
	if err != nil {
		return nil, err
	}
	// Up before the filter is attached: without a filter its frames reach
	// a stack without addresses, and nothing else.
	if err := h.setUp(link, tunnelPort); err != nil {
		return nil, fmt.Errorf("set %s up: %w", tunnelDevice, err)
	}
	return link, nil
}

// OpenTunnel makes frames that arrive by the migration tunnel with this id go
// to t, subject to its gate. An id belongs to one tap at a time; opening it
// again for another tap moves it.
func (h *Host) OpenTunnel(id fleet.TunnelID, t *Tap) error {
	if id == 0 || id > fleet.MaxTunnelID {
		return &fleet.Error{Code: fleet.Invalid, Op: "open tunnel", Subject: t.Name(),
			Cause: fmt.Sprintf("tunnel id %d is not in 1 to %d", id, fleet.MaxTunnelID)}
	}
	if err := h.filter.GwTunnels.Put(uint32(id), uint32(t.ifindex)); err != nil {
		return fmt.Errorf("open tunnel %d to %s: %w", id, t.Name(), err)
	}
	return nil
}

// CloseTunnel makes frames with this id be dropped. An id that is not open is
// no error.
func (h *Host) CloseTunnel(id fleet.TunnelID) error {
	err := h.filter.GwTunnels.Delete(uint32(id))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("close tunnel %d: %w", id, err)
	}
	return nil
}

// knownInterfaces gives the interfaces that the maps have an entry for.
func (h *Host) knownInterfaces() (map[uint32]bool, error) {
	known := make(map[uint32]bool)
	var ifindex, id uint32
	var entry gateEntry
	gates := h.filter.GwGates.Iterate()
	for gates.Next(&ifindex, &entry) {
		known[ifindex] = true
	}
	tunnels := h.filter.GwTunnels.Iterate()
	for tunnels.Next(&id, &ifindex) {
		known[ifindex] = true
	}
	var perCPU []counterEntry
	counters := h.filter.GwCounters.Iterate()
	for counters.Next(&ifindex, &perCPU) {
		known[ifindex] = true
	}
	if err := errors.Join(gates.Err(), tunnels.Err(), counters.Err()); err != nil {
		return nil, fmt.Errorf("list gates: %w", err)
	}
	return known, nil
}

// forget removes all map entries of an interface.
func (h *Host) forget(ifindex uint32) error {
	var ids []uint32
	var id, tap uint32
	tunnels := h.filter.GwTunnels.Iterate()
	for tunnels.Next(&id, &tap) {
		if tap == ifindex {
			ids = append(ids, id)
		}
	}
	errs := []error{tunnels.Err()}
	for _, id := range ids {
		errs = append(errs, h.CloseTunnel(fleet.TunnelID(id)))
	}
	for _, m := range []*ebpf.Map{h.filter.GwGates, h.filter.GwCounters, h.filter.GwRedirected} {
		if err := m.Delete(ifindex); !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("forget interface %d: %w", ifindex, err)
	}
	return nil
}
