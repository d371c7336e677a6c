package server

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// VXLAN network identifiers of networks: the lower half of the 24 bits. The
// upper half is for the tunnels of migrations.
const (
	firstNetworkVNI uint32 = 1
	lastNetworkVNI  uint32 = 1<<23 - 1
)

// maxAddressTries bounds the search for a free address.
const maxAddressTries = 1 << 16

// addressKey is the key of the record that says who has an address (a MAC or
// an IP address) in a network.
func addressKey(network fleet.NetworkName, address string) string {
	return string(network) + "/" + address
}

func vniKey(vni uint32) string { return strconv.FormatUint(uint64(vni), 10) }

// vlanKey is the key of the record that says which provider network is in a VLAN of a
// bridge, or in its untagged frames.
func vlanKey(network fleet.Network) string {
	return network.Bridge + "/" + strconv.FormatUint(uint64(network.VLAN), 10)
}

// addressKeysOf lists the keys of all addresses of a VM.
func addressKeysOf(spec fleet.VMSpec) (keys []string) {
	for _, port := range spec.Ports {
		keys = append(keys, addressKey(port.Network, port.MAC))
		for _, ip := range port.IPs {
			keys = append(keys, addressKey(port.Network, ip.String()))
		}
	}
	return keys
}

// takenAddresses reads who has which address in a network.
func (t tables) takenAddresses(ctx context.Context, network fleet.NetworkName) (map[string]addressHolder, error) {
	taken := map[string]addressHolder{}
	prefix := t.addresses.Prefix() + string(network) + "/"
	records, _, err := t.store.All(ctx, prefix)
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		entry, err := t.addresses.Decode(record)
		if err != nil {
			return nil, err
		}
		taken[strings.TrimPrefix(record.Key, prefix)] = entry.Value
	}
	return taken, nil
}

func (h addressHolder) String() string {
	if h.Endpoint != "" {
		return "endpoint " + h.Endpoint
	}
	return fmt.Sprintf("port %s of vm %s", h.Port, h.VM)
}

// newMAC gives a locally administered unicast address that is free.
func newMAC(taken map[string]addressHolder) string {
	for {
		mac := make(net.HardwareAddr, 6)
		_, _ = rand.Read(mac) // never fails since Go 1.24
		mac[0] = mac[0]&^1 | 2
		if _, used := taken[mac.String()]; !used {
			return mac.String()
		}
	}
}

// newIP gives the lowest free address of a subnet. The first host address is
// left for a gateway.
func newIP(subnet netip.Prefix, taken map[string]addressHolder) (netip.Addr, bool) {
	ip := subnet.Masked().Addr().Next().Next()
	for range maxAddressTries {
		if !subnet.Contains(ip) || !isHostAddress(subnet, ip) {
			return netip.Addr{}, false
		}
		if _, used := taken[ip.String()]; !used {
			return ip, true
		}
		ip = ip.Next()
	}
	return netip.Addr{}, false
}

// admit gives a new VM's ports the addresses they lack, and the conditions and
// changes that take all of them. Putting the networks unchanged makes a commit
// fail that deletes one at the same time.
func (t tables) admit(ctx context.Context, vm *fleet.VM, networks map[fleet.NetworkName]store.Entry[fleet.Network]) (conditions []store.Condition, ops []store.Op, found findings, err error) {
	taken := map[fleet.NetworkName]map[string]addressHolder{}
	for i := range vm.Spec.Ports {
		port := &vm.Spec.Ports[i]
		network := networks[port.Network]
		if taken[port.Network] == nil {
			if taken[port.Network], err = t.takenAddresses(ctx, port.Network); err != nil {
				return nil, nil, nil, err
			}
			conditions = append(conditions, t.networks.At(network.Name, network.Version))
			ops = append(ops, t.networks.Put(network.Name, network.Value))
		}
		holder := addressHolder{VM: vm.Name, Port: port.Name}
		found = append(found, assign(port, fmt.Sprintf("ports[%d]", i), network.Value, taken[port.Network], holder)...)
	}
	for _, port := range vm.Spec.Ports {
		holder := addressHolder{VM: vm.Name, Port: port.Name}
		for _, key := range addressKeysOf(fleet.VMSpec{Ports: []fleet.Port{port}}) {
			conditions = append(conditions, t.addresses.Absent(key))
			ops = append(ops, t.addresses.Put(key, holder))
		}
	}
	return conditions, ops, found, nil
}

// assign fills in the addresses that a port lacks: a MAC, and without any IP
// address one from the first subnet of each family. What it takes or finds
// given is noted in taken.
func assign(port *fleet.Port, at string, network fleet.Network, taken map[string]addressHolder, holder addressHolder) (found findings) {
	take := func(field, address string) {
		if other, used := taken[address]; used {
			found.add(field, "%s is taken by %v", address, other)
			return
		}
		taken[address] = holder
	}
	if port.MAC == "" {
		port.MAC = newMAC(taken)
	}
	take(at+".mac", port.MAC)
	if len(port.IPs) > 0 {
		for i, ip := range port.IPs {
			take(fmt.Sprintf("%s.ips[%d]", at, i), ip.String())
		}
		return found
	}
	done := map[bool]bool{} // by "is IPv4"
	for _, subnet := range network.Subnets {
		family := subnet.Addr().Is4()
		if done[family] {
			continue
		}
		ip, free := newIP(subnet, taken)
		if !free {
			found.add(at+".ips", "no address of %s is free", subnet)
			continue
		}
		done[family] = true
		port.IPs = append(port.IPs, ip)
		taken[ip.String()] = holder
	}
	return found
}
