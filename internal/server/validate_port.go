package server

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"godwit.dev/godwit/internal/fleet"
)

func (f *findings) checkPorts(ports []fleet.Port, networks map[fleet.NetworkName]fleet.Network) {
	if len(ports) > fleet.MaxPorts {
		f.add("ports", "are %d, at most %d are possible", len(ports), fleet.MaxPorts)
		return
	}
	names, addresses := map[string]int{}, map[string]string{}
	for i, port := range ports {
		at := fmt.Sprintf("ports[%d]", i)
		f.checkName(at+".name", port.Name, names, "ports", i)
		if port.Queues < 1 || port.Queues > maxQueues {
			f.add(at+".queues", "is %d, must be between 1 and %d", port.Queues, maxQueues)
		}
		network, known := networks[port.Network]
		if !known {
			f.add(at+".network", "there is no network %q", port.Network)
		}
		f.checkMAC(at+".mac", port.MAC)
		f.checkIPs(at, port.IPs, network, known)
		f.checkTwice(at, port, addresses)
	}
}

// checkTwice finds addresses that two ports of the same VM have in one network.
func (f *findings) checkTwice(at string, port fleet.Port, seen map[string]string) {
	note := func(field, address string) {
		key := string(port.Network) + "/" + address
		if first, twice := seen[key]; twice {
			f.add(field, "is that of %s too", first)
			return
		}
		seen[key] = field
	}
	if port.MAC != "" {
		note(at+".mac", port.MAC)
	}
	for i, ip := range port.IPs {
		if ip.IsValid() {
			note(fmt.Sprintf("%s.ips[%d]", at, i), ip.String())
		}
	}
}

// checkMAC accepts none, which lets the server choose one.
func (f *findings) checkMAC(field, text string) {
	if text == "" {
		return
	}
	mac, err := net.ParseMAC(text)
	switch {
	case err != nil || len(mac) != 6 || mac.String() != text:
		f.add(field, "%q is not a MAC address such as 02:00:5e:10:00:01", text)
	case mac[0]&1 != 0:
		f.add(field, "%s is a group address, a port needs a unicast one", text)
	case slices.Max(mac) == 0:
		f.add(field, "is all zero")
	}
}

func (f *findings) checkIPs(at string, ips []netip.Addr, network fleet.Network, known bool) {
	if len(ips) > maxIPs {
		f.add(at+".ips", "are %d, at most %d are possible", len(ips), maxIPs)
		return
	}
	for i, ip := range ips {
		if known && ip.IsValid() { // what is not valid was reported when it was read
			f.checkIP(fmt.Sprintf("%s.ips[%d]", at, i), ip, network)
		}
	}
}

// checkIP accepts any unicast address in a network without subnets.
func (f *findings) checkIP(field string, ip netip.Addr, network fleet.Network) {
	if ip.Zone() != "" || ip.Is4In6() || ip.IsMulticast() || ip.IsUnspecified() || ip.IsLoopback() {
		f.add(field, "%s is not an address that a port can have", ip)
		return
	}
	if len(network.Subnets) == 0 {
		return
	}
	at := slices.IndexFunc(network.Subnets, func(p netip.Prefix) bool { return p.Contains(ip) })
	switch {
	case at < 0:
		f.add(field, "%s is in no subnet of network %s: %v", ip, network.Name, network.Subnets)
	case !isHostAddress(network.Subnets[at], ip):
		f.add(field, "%s is the network or broadcast address of %s", ip, network.Subnets[at])
	}
}

// isHostAddress leaves out the first and last address of an IPv4 subnet, and
// the first of an IPv6 one (RFC 4291, section 2.6.1). Point-to-point subnets
// have neither (RFC 3021, RFC 6164).
func isHostAddress(subnet netip.Prefix, ip netip.Addr) bool {
	if subnet.Addr().BitLen()-subnet.Bits() <= 1 {
		return true
	}
	if ip == subnet.Masked().Addr() {
		return false
	}
	return ip.Is6() || subnet.Contains(ip.Next())
}
