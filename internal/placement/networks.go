package placement

import (
	"fmt"

	"godwit.dev/godwit/internal/fleet"
)

// What VXLAN adds to a packet (RFC 7348, section 5), by the addresses of the hosts.
const (
	overheadIPv4 = 50
	overheadIPv6 = 70
)

// BridgeHint is where to look when RefuseBridge refuses a host.
const BridgeHint = "a host takes part in a provider network by its bridge; godwit host show HOST lists those it has"

// RefuseBridge gives every reason why a host cannot have a port in a network that is on
// its own bridges; none for any other network.
func RefuseBridge(host fleet.HostNetworks, network fleet.Network) (why []string) {
	if !network.Provider() {
		return nil
	}
	bridge, has := host.Bridge(network.Bridge)
	if !has {
		return []string{fmt.Sprintf("it has no bridge %s, which network %s is on", network.Bridge, network.Name)}
	}
	if bridge.MTU < network.MTU {
		why = append(why, fmt.Sprintf("its bridge %s has an MTU of %d, network %s needs %d", bridge.Name, bridge.MTU, network.Name, network.MTU))
	}
	if network.VLAN != 0 && !bridge.FiltersVLANs {
		why = append(why, fmt.Sprintf("its bridge %s does not filter VLANs, network %s is VLAN %d of it", bridge.Name, network.Name, network.VLAN))
	}
	return why
}

func refuseBridges(host fleet.HostNetworks, networks []fleet.Network) (why []string) {
	for _, network := range networks {
		why = append(why, RefuseBridge(host, network)...)
	}
	return why
}

// refuseUnderlay refuses a migration's target between which and other hosts packets of the
// VM would be fragmented, and more so than they are at its source.
func refuseUnderlay(host, source fleet.Host, networks []fleet.Network) (why []string) {
	own, before := host.Networks.UnderlayMTU, source.Networks.UnderlayMTU
	if own == 0 || own >= before {
		return nil // it is not known, or no worse than before
	}
	overhead := overheadIPv6
	if host.Address.Unmap().Is4() {
		overhead = overheadIPv4
	}
	for _, network := range networks {
		if need := network.MTU + overhead; !network.Provider() && own < need {
			why = append(why, fmt.Sprintf("its MTU to other hosts is %d, network %s needs %d, and host %s has %d", own, network.Name, need, source.Name, before))
		}
	}
	return why
}
