package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
)

// applyAddresses makes the host's overlays be as the server says.
func (a *Agent) applyAddresses(addresses *godwitv1.AddressMap) {
	a.addressMu.Lock()
	defer a.addressMu.Unlock()
	if a.addresses != nil && addresses.GetVersion() < a.addresses.GetVersion() {
		return
	}
	before := a.addresses
	a.addresses = addresses
	for _, one := range addresses.GetNetworks() {
		if err := a.applyNetwork(one); err != nil {
			a.log.Error("the addresses of a network are not all set", "network", one.GetName(), "error", err)
		}
	}
	for _, one := range before.GetNetworks() {
		if a.networkMap(fleet.NetworkName(one.GetName())) == nil {
			// Refused while a tap is in it; then it goes with a later map.
			if err := a.config.Network.RemoveNetwork(fleet.NetworkName(one.GetName())); err != nil {
				a.log.Debug("a network stays", "network", one.GetName(), "error", err)
			}
		}
	}
}

// reapply does it again for one network, after a port came or went here.
func (a *Agent) reapply(name fleet.NetworkName) error {
	a.addressMu.Lock()
	defer a.addressMu.Unlock()
	if one := a.networkMap(name); one != nil {
		return a.applyNetwork(one)
	}
	return nil
}

func (a *Agent) networkMap(name fleet.NetworkName) *godwitv1.NetworkMap {
	for _, one := range a.addresses.GetNetworks() {
		if one.GetName() == string(name) {
			return one
		}
	}
	return nil
}

// applyNetwork must be called with addressMu held.
func (a *Agent) applyNetwork(one *godwitv1.NetworkMap) error {
	name := fleet.NetworkName(one.GetName())
	host := a.config.Network
	if err := host.EnsureNetwork(network.Network{Name: name, VNI: one.GetVni(), MTU: int(one.GetMtu())}); err != nil {
		return err
	}
	var errs []error
	for _, endpoint := range one.GetEndpoints() {
		errs = append(errs, host.AttachEndpoint(name, endpoint.GetDevice()))
	}
	var list []network.Address
	for _, entry := range one.GetEntries() {
		address, err := a.address(one, entry)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if address.Host != a.config.Address || address.Local != "" {
			list = append(list, address)
		}
	}
	var peers []netip.Addr
	for _, text := range one.GetPeers() {
		peer, err := netip.ParseAddr(text)
		errs = append(errs, err)
		peers = append(peers, peer)
	}
	return errors.Join(append(errs, host.ApplyAddresses(name, list, peers...))...)
}

// address says where frames for an entry go on this host: to its own device if
// the owner is here; to the tap of a source that forwards; and else to the
// owner's host.
func (a *Agent) address(one *godwitv1.NetworkMap, entry *godwitv1.AddressEntry) (network.Address, error) {
	mac, err := net.ParseMAC(entry.GetMac())
	if err != nil {
		return network.Address{}, fmt.Errorf("address map: %w", err)
	}
	host, err := netip.ParseAddr(entry.GetAddress())
	if err != nil {
		return network.Address{}, fmt.Errorf("address map: %w", err)
	}
	address := network.Address{MAC: mac, Host: host}
	for _, text := range entry.GetIps() {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			return address, fmt.Errorf("address map: %w", err)
		}
		address.IPs = append(address.IPs, ip)
	}
	here := host == a.config.Address
	switch {
	case entry.GetVm() != "":
		address.Local, address.Hold = a.tapOf(fleet.VMName(entry.GetVm()), entry.GetPort(), here)
	case here:
		for _, endpoint := range one.GetEndpoints() {
			if endpoint.GetName() == entry.GetPort() {
				address.Local = endpoint.GetDevice()
			}
		}
	}
	return address, nil
}

// tapOf gives the tap that has a VM's frames on this host, if one has, and
// whether it has them although the owner is elsewhere: a source forwards them,
// and a target that has everything keeps them until it may run.
func (a *Agent) tapOf(vm fleet.VMName, port string, ownerHere bool) (tap string, hold bool) {
	var newest fleet.Epoch
	for _, m := range a.all() {
		if m.key.vm != vm || m.key.epoch < newest {
			continue
		}
		if name, claims := m.claim(port); claims {
			tap, newest = name, m.key.epoch
		}
	}
	return tap, tap != "" && !ownerHere
}

// unclaim points the addresses of the machine's ports away from its taps,
// where somebody else is known to have them.
func (m *machine) unclaim() error {
	m.mu.Lock()
	m.leaving = true
	m.mu.Unlock()
	var errs []error
	for _, name := range m.networks() {
		errs = append(errs, m.agent.reapply(name))
	}
	return errors.Join(errs...)
}

// claim gives the tap of a port, if the machine wants its frames.
func (m *machine) claim(name string) (tap string, claims bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leaving || m.record.Role == arriving && m.marks == nil {
		return "", false
	}
	if m.unadopted != nil {
		for _, port := range m.record.Ports {
			if port.Name == name {
				return port.Tap, true
			}
		}
	}
	for _, port := range m.ports {
		if port.name == name {
			return port.tap.Name(), true
		}
	}
	return "", false
}
