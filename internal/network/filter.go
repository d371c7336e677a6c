package network

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// filterName marks our tc filters.
const filterName = "godwit"

// filters are the loaded programs and the maps that they share. The maps are
// as old as the first filter that is attached; the programs are of this agent.
type filters struct {
	filterPrograms
	filterMaps

	// fence is used to wait for frames in flight, see await.
	fence *ebpf.Map
	inner *ebpf.Map
}

func (f *filters) close() error {
	return errors.Join(f.filterPrograms.Close(), f.filterMaps.Close(), f.fence.Close(), f.inner.Close())
}

// await returns when every run of a filter that began before the call has
// ended, and with it the delivery of its frame: a tap has no queueing
// discipline, so a frame goes from the filter into the tap's ring in one
// read-side section. The kernel promises this after the update of an array of
// maps (maybe_wait_bpf_programs in kernel/bpf/syscall.c).
func (f *filters) await() error {
	return f.fence.Put(uint32(0), f.inner)
}

// loadFilters loads the programs onto the maps that attached filters use, or
// onto new maps if there are none.
func (h *Host) loadFilters(tunnel netlink.Link) error {
	spec, err := loadFilter()
	if err != nil {
		return fmt.Errorf("read the compiled filters: %w", err)
	}
	underlay := tunnelAddress(h.underlay)
	var isIPv6 uint32
	if h.underlay.Is6() {
		isIPv6 = 1
	}
	err = errors.Join(
		spec.Variables["tunnel_ifindex"].Set(uint32(tunnel.Attrs().Index)),
		spec.Variables["underlay_is_ipv6"].Set(isIPv6),
		spec.Variables["underlay"].Set(underlay))
	if err != nil {
		return fmt.Errorf("set up the filters: %w", err)
	}
	kept, err := h.attachedMaps()
	if err != nil {
		return err
	}
	defer closeAll(maps.Values(kept)) // LoadAndAssign takes copies
	var loaded struct {
		filterPrograms
		filterMaps
	}
	err = spec.LoadAndAssign(&loaded, &ebpf.CollectionOptions{MapReplacements: kept})
	if errors.Is(err, ebpf.ErrMapIncompatible) {
		return &fleet.Error{Code: fleet.Conflict, Op: "open", Subject: "network", Err: err,
			Cause: "the gates in the kernel are of another version of Godwit",
			Hint:  "move the VMs of this host away with the version that started them, then purge its network"}
	}
	if err != nil {
		return &fleet.Error{Code: fleet.Unsupported, Op: "open", Subject: "network", Err: err,
			Cause: "the kernel does not take the gate programs",
			Hint:  "a kernel of version 6.1 or newer with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF, and root, are needed"}
	}
	h.filter = &filters{filterPrograms: loaded.filterPrograms, filterMaps: loaded.filterMaps}
	return h.filter.makeFence()
}

func (f *filters) makeFence() (err error) {
	inner := &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	f.inner, err = ebpf.NewMap(inner)
	if err != nil {
		return fmt.Errorf("make the fence: %w", err)
	}
	f.fence, err = ebpf.NewMap(&ebpf.MapSpec{Name: "gw_fence", Type: ebpf.ArrayOfMaps,
		KeySize: 4, ValueSize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return fmt.Errorf("make the fence: %w", err)
	}
	return nil
}

// stateMaps are the maps whose content must outlive the agent. The filter of
// the tunnel device keeps the tunnels, those of any tap the others; where there
// is no tap, the others would be empty.
func stateMaps() []string {
	return []string{"gw_gates", "gw_tunnels", "gw_counters", "gw_redirected", "gw_groups"}
}

// attachedMaps gives the maps that the filters of an earlier agent use.
func (h *Host) attachedMaps() (map[string]*ebpf.Map, error) {
	links, err := h.links()
	if err != nil {
		return nil, err
	}
	found := make(map[string]*ebpf.Map)
	for _, link := range links {
		if link.Attrs().Name != tunnelDevice && !isTap(link) {
			continue
		}
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			if err := h.collectMaps(link, parent, found); err != nil {
				closeAll(maps.Values(found))
				return nil, fmt.Errorf("read filter of %s: %w", link.Attrs().Name, err)
			}
		}
		if len(found) == len(stateMaps()) {
			break
		}
	}
	return found, nil
}

func (h *Host) collectMaps(link netlink.Link, parent uint32, found map[string]*ebpf.Map) error {
	list, err := retryDump(func() ([]netlink.Filter, error) { return h.nl.FilterList(link, parent) })
	if err != nil {
		return err
	}
	for _, filter := range list {
		ours, ok := filter.(*netlink.BpfFilter)
		if !ok || ours.Name != filterName {
			continue
		}
		if err := mapsOfProgram(ebpf.ProgramID(ours.Id), found); err != nil {
			return err
		}
	}
	return nil
}

func closeAll(all iter.Seq[*ebpf.Map]) {
	for m := range all {
		m.Close() // only a descriptor
	}
}

// mapsOfProgram adds the state maps of a loaded program to found.
func mapsOfProgram(id ebpf.ProgramID, found map[string]*ebpf.Map) error {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return err
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return err
		}
		info, err := m.Info()
		if err != nil {
			return errors.Join(err, m.Close())
		}
		if found[info.Name] != nil || !slices.Contains(stateMaps(), info.Name) {
			if err := m.Close(); err != nil {
				return err
			}
			continue
		}
		found[info.Name] = m
	}
	return nil
}

// attach puts a program at one direction of a device, in place of whatever
// version of it is there, without a moment between the two.
func (h *Host) attach(link netlink.Link, parent uint32, program *ebpf.Program) error {
	index := link.Attrs().Index
	clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := h.nl.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact to %s: %w", link.Attrs().Name, err)
	}
	err := h.nl.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent,
			Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd: program.FD(), Name: filterName, DirectAction: true})
	if err != nil {
		return fmt.Errorf("attach filter to %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// attachGate puts the gate programs at both directions of a tap.
func (h *Host) attachGate(link netlink.Link) error {
	return errors.Join(
		h.attach(link, netlink.HANDLE_MIN_EGRESS, h.filter.ToGuest),
		h.attach(link, netlink.HANDLE_MIN_INGRESS, h.filter.FromGuest))
}
