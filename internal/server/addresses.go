package server

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// picture is what the address map is made of.
type picture struct {
	vms      map[fleet.VMName]store.Entry[fleet.VM]
	hosts    map[fleet.HostName]fleet.Host
	networks map[fleet.NetworkName]fleet.Network
	moves    map[fleet.MigrationID]move
}

// overlay is one network with the hosts that take part in it.
type overlay struct {
	network fleet.Network
	members map[fleet.HostName]bool
	entries []*godwitv1.AddressEntry
}

// addressMaps gives for each host that takes part in any overlay what it must
// know of its overlays, in order of their names. A host takes part in one
// when it has an endpoint or a VM there, and also when a VM is moving
// to or from it: the target must know the addresses before the VM arrives, the
// source as long as it forwards. Messages are shared between hosts and must
// not be changed.
func addressMaps(p picture) map[fleet.HostName][]*godwitv1.NetworkMap {
	overlays := overlaysOf(p)
	maps := map[fleet.HostName][]*godwitv1.NetworkMap{}
	for _, o := range overlays {
		for member := range o.members {
			maps[member] = append(maps[member], o.mapFor(member, p.hosts))
		}
	}
	return maps
}

func overlaysOf(p picture) []*overlay {
	byName := map[fleet.NetworkName]*overlay{}
	for name, network := range p.networks {
		if network.Provider() {
			continue // its bridges learn
		}
		byName[name] = &overlay{network: network, members: map[fleet.HostName]bool{}}
	}
	joining := map[fleet.VMName][]fleet.HostName{}
	forwarding := map[fleet.VMName]fleet.HostName{}
	for _, move := range p.moves {
		if !move.over {
			joining[move.vm] = append(joining[move.vm], move.source, move.target)
		}
		if move.awaitsTarget {
			forwarding[move.vm] = move.source
		}
	}
	for name, entry := range p.vms {
		for _, port := range entry.Value.Spec.Ports {
			if o := byName[port.Network]; o != nil && isPlaced(entry.Value) {
				o.addPort(entry.Value, port, cmp.Or(forwarding[name], entry.Value.Owner.Host), p.hosts)
				for _, host := range joining[name] {
					o.members[host] = true
				}
			}
		}
	}
	for _, o := range byName {
		o.addEndpoints(p.hosts)
		slices.SortFunc(o.entries, compareEntries)
	}
	return slices.SortedFunc(maps.Values(byName), func(a, b *overlay) int {
		return cmp.Compare(a.network.Name, b.network.Name)
	})
}

// isPlaced reports whether an instance of the VM may exist.
func isPlaced(vm fleet.VM) bool {
	switch vm.Phase {
	case fleet.VMStarting, fleet.VMRunning, fleet.VMStopping:
		return vm.Owner.Host != ""
	}
	return false
}

// addPort says where frames for a port are sent: to the owner's host, or to the
// source that forwards them there.
func (o *overlay) addPort(vm fleet.VM, port fleet.Port, at fleet.HostName, hosts map[fleet.HostName]fleet.Host) {
	o.members[at] = true
	o.entries = append(o.entries, &godwitv1.AddressEntry{
		Mac: port.MAC, Ips: texts(port.IPs),
		Host: string(at), Address: addressOf(hosts, at),
		Vm: string(vm.Name), Port: port.Name,
	})
}

func (o *overlay) addEndpoints(hosts map[fleet.HostName]fleet.Host) {
	for _, endpoint := range o.network.Endpoints {
		o.members[endpoint.Host] = true
		o.entries = append(o.entries, &godwitv1.AddressEntry{
			Mac: endpoint.MAC, Ips: texts(endpoint.IPs),
			Host: string(endpoint.Host), Address: addressOf(hosts, endpoint.Host), Port: endpoint.Name,
		})
	}
}

func compareEntries(a, b *godwitv1.AddressEntry) int {
	return cmp.Or(cmp.Compare(a.GetMac(), b.GetMac()), cmp.Compare(a.GetVm(), b.GetVm()), cmp.Compare(a.GetPort(), b.GetPort()))
}

// mapFor gives the network as one member sees it: all addresses, the other
// members, and its own endpoints.
func (o *overlay) mapFor(member fleet.HostName, hosts map[fleet.HostName]fleet.Host) *godwitv1.NetworkMap {
	view := &godwitv1.NetworkMap{
		Name: string(o.network.Name), Vni: o.network.VNI, Mtu: int32(o.network.MTU), Entries: o.entries,
	}
	for _, other := range slices.Sorted(maps.Keys(o.members)) {
		if address := addressOf(hosts, other); other != member && address != "" {
			view.Peers = append(view.Peers, address)
		}
	}
	for _, endpoint := range o.network.Endpoints {
		if endpoint.Host == member {
			view.Endpoints = append(view.Endpoints, wire.EncodeEndpoint(endpoint))
		}
	}
	return view
}

// addressOf gives "" for a host that has not said where it can be reached.
func addressOf(hosts map[fleet.HostName]fleet.Host, name fleet.HostName) string {
	if address := hosts[name].Address; address.IsValid() {
		return address.String()
	}
	return ""
}

func texts(addresses []netip.Addr) (out []string) {
	for _, address := range addresses {
		out = append(out, address.String())
	}
	return out
}

// addressMaps makes the address map of what the mirror holds now.
func (m *mirror) addressMaps() (map[fleet.HostName][]*godwitv1.NetworkMap, position) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return addressMaps(picture{vms: m.vms, hosts: m.hosts, networks: m.networks, moves: m.migrations}), m.at
}
