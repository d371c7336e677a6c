package wire

import (
	"math"
	"net/netip"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// EncodeNetwork gives the message of a network whose record has the given
// version.
func EncodeNetwork(network fleet.Network, version int64) *godwitv1.Network {
	message := &godwitv1.Network{
		Name:    string(network.Name),
		Vni:     network.VNI,
		Mtu:     clampInt32(network.MTU),
		Version: version,
		Bridge:  network.Bridge,
		Vlan:    uint32(network.VLAN),
	}
	for _, subnet := range network.Subnets {
		message.Subnets = append(message.Subnets, encodePrefix(subnet))
	}
	for _, endpoint := range network.Endpoints {
		message.Endpoints = append(message.Endpoints, EncodeEndpoint(endpoint))
	}
	return message
}

// DecodeNetwork is the inverse of EncodeNetwork. Its errors are a *fleet.Error
// with code Invalid and paths such as "subnets[0]" or "endpoints[1].ips[0]".
func DecodeNetwork(message *godwitv1.Network) (network fleet.Network, version int64, err error) {
	var faults faults
	if message == nil {
		faults.add("network", "is missing")
		return network, 0, faults.err("read network")
	}
	network = fleet.Network{
		Name: fleet.NetworkName(message.GetName()),
		VNI:  message.GetVni(),
		MTU:  int(message.GetMtu()),

		Bridge: message.GetBridge(),
		VLAN:   uint16(min(message.GetVlan(), math.MaxUint16)), // more is no VLAN either
	}
	for i, text := range message.GetSubnets() {
		subnet, err := netip.ParsePrefix(text)
		if err != nil {
			faults.add(index("subnets", i), quote(text)+" is not a prefix such as 10.20.0.0/24")
			continue
		}
		network.Subnets = append(network.Subnets, subnet)
	}
	for i, endpoint := range message.GetEndpoints() {
		network.Endpoints = append(network.Endpoints, decodeEndpoint(endpoint, index("endpoints", i), &faults))
	}
	return network, message.GetVersion(), faults.err("read network " + message.GetName())
}

// EncodeHostNetworks gives the message of what a host has of networks by itself.
func EncodeHostNetworks(networks fleet.HostNetworks) *godwitv1.HostNetworks {
	message := &godwitv1.HostNetworks{UnderlayMtu: clampInt32(networks.UnderlayMTU)}
	for _, bridge := range networks.Bridges {
		message.Bridges = append(message.Bridges, &godwitv1.Bridge{
			Name: bridge.Name, Mtu: clampInt32(bridge.MTU), FiltersVlans: bridge.FiltersVLANs,
		})
	}
	return message
}

// DecodeHostNetworks is the inverse of EncodeHostNetworks.
func DecodeHostNetworks(message *godwitv1.HostNetworks) fleet.HostNetworks {
	networks := fleet.HostNetworks{UnderlayMTU: int(message.GetUnderlayMtu())}
	for _, bridge := range message.GetBridges() {
		networks.Bridges = append(networks.Bridges, fleet.Bridge{
			Name: bridge.GetName(), MTU: int(bridge.GetMtu()), FiltersVLANs: bridge.GetFiltersVlans(),
		})
	}
	return networks
}

// EncodeEndpoint gives the message of an endpoint.
func EncodeEndpoint(endpoint fleet.Endpoint) *godwitv1.Endpoint {
	return &godwitv1.Endpoint{
		Name:   endpoint.Name,
		Host:   string(endpoint.Host),
		Device: endpoint.Device,
		Mac:    endpoint.MAC,
		Ips:    encodeAddrs(endpoint.IPs),
	}
}

// DecodeEndpoint is the inverse of EncodeEndpoint. Its errors are a
// *fleet.Error with code Invalid and paths such as "ips[0]".
func DecodeEndpoint(message *godwitv1.Endpoint) (fleet.Endpoint, error) {
	var faults faults
	if message == nil {
		faults.add("endpoint", "is missing")
		return fleet.Endpoint{}, faults.err("read endpoint")
	}
	endpoint := decodeEndpoint(message, "", &faults)
	return endpoint, faults.err("read endpoint " + message.GetName())
}

func decodeEndpoint(message *godwitv1.Endpoint, path string, faults *faults) fleet.Endpoint {
	return fleet.Endpoint{
		Name:   message.GetName(),
		Host:   fleet.HostName(message.GetHost()),
		Device: message.GetDevice(),
		MAC:    message.GetMac(),
		IPs:    decodeAddrs(message.GetIps(), join(path, "ips"), faults),
	}
}

// encodeAddr gives "" for the zero address.
func encodeAddr(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}

func encodePrefix(prefix netip.Prefix) string {
	if !prefix.IsValid() {
		return ""
	}
	return prefix.String()
}

func encodeAddrs(addrs []netip.Addr) []string {
	var texts []string
	for _, addr := range addrs {
		texts = append(texts, encodeAddr(addr))
	}
	return texts
}

func decodeAddr(text, path string, faults *faults) netip.Addr {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		faults.add(path, quote(text)+" is not an IP address")
	}
	return addr
}

func decodeAddrs(texts []string, path string, faults *faults) []netip.Addr {
	var addrs []netip.Addr
	for i, text := range texts {
		addrs = append(addrs, decodeAddr(text, index(path, i), faults))
	}
	return addrs
}
