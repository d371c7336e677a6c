package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
)

// A map that could not be set in full is tried again so often, with pauses
// that double from the first to the longest: longer in all than the server
// waits for a host. After that it waits for the next map or session.
const (
	addressTries    = 20
	addressPauseMin = 50 * time.Millisecond
	addressPauseMax = 5 * time.Second
)

// ethernetSize is of an Ethernet address, in bytes.
const ethernetSize = 6

// followAddresses applies the maps of a session, always the newest, and
// acknowledges those that are set in full: the server ends the forwarding on
// it. It returns when ctx ends.
func (a *Agent) followAddresses(ctx context.Context, s *session) {
	again := time.NewTimer(0)
	again.Stop()
	defer again.Stop()
	var newest *godwitv1.AddressMap
	var acknowledged int64
	var failures int
	for {
		select {
		case newest = <-s.addresses:
			failures = 0
		case <-again.C:
		case <-ctx.Done():
			return
		}
		again.Stop()
		known, err := a.applyAddresses(newest)
		if known && newest.GetVersion() != acknowledged {
			acknowledged = newest.GetVersion()
			s.send(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_AddressesApplied{
				AddressesApplied: &godwitv1.AddressesApplied{Version: acknowledged},
			}})
		}
		if err == nil {
			continue
		}
		failures++
		if failures == 1 || failures == addressTries {
			a.log.Error("the addresses are not all set", "version", newest.GetVersion(), "known", known, "tries", failures, "error", err)
		}
		if failures < addressTries {
			again.Reset(min(addressPauseMin<<(failures-1), addressPauseMax))
		}
	}
}

// applyAddresses makes the host's overlays be as the server says. Unless known,
// frames for some address may still go where they went before. An error is
// worth another try; if known, it is of an endpoint whose device is not there.
func (a *Agent) applyAddresses(addresses *godwitv1.AddressMap) (known bool, err error) {
	a.addressMu.Lock()
	defer a.addressMu.Unlock()
	if a.addresses != nil && addresses.GetVersion() < a.addresses.GetVersion() {
		addresses = a.addresses // what it says is overtaken
	}
	before := a.addresses
	a.addresses = addresses
	known = true
	var errs []error
	for _, one := range addresses.GetNetworks() {
		missing, err := a.applyNetwork(one)
		known = known && err == nil
		if err := errors.Join(missing, err); err != nil {
			errs = append(errs, fmt.Errorf("network %s: %w", one.GetName(), err))
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
	return known, errors.Join(errs...)
}

// reapply does it again for one network, after a port came or went here.
func (a *Agent) reapply(name fleet.NetworkName) error {
	a.addressMu.Lock()
	defer a.addressMu.Unlock()
	one := a.networkMap(name)
	if one == nil {
		return nil
	}
	missing, err := a.applyNetwork(one)
	if missing != nil {
		a.log.Warn("an endpoint is not attached", "network", name, "error", missing)
	}
	return err
}

func (a *Agent) networkMap(name fleet.NetworkName) *godwitv1.NetworkMap {
	for _, one := range a.addresses.GetNetworks() {
		if one.GetName() == string(name) {
			return one
		}
	}
	return nil
}

// applyNetwork sets the addresses of one network; missing are its endpoints on
// this host that could not be attached. It must be called with addressMu held.
func (a *Agent) applyNetwork(one *godwitv1.NetworkMap) (missing, err error) {
	name := fleet.NetworkName(one.GetName())
	host := a.config.Network
	if err := host.EnsureNetwork(network.Network{Name: name, VNI: one.GetVni(), MTU: int(one.GetMtu())}); err != nil {
		return nil, err
	}
	devices, missing, err := a.attachEndpoints(name, one.GetEndpoints())
	errs := []error{err}
	var list []network.Address
	for _, entry := range one.GetEntries() {
		address, err := a.address(entry, devices)
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
		peer, err := parseAddr(text)
		errs = append(errs, err)
		peers = append(peers, peer)
	}
	return missing, errors.Join(append(errs, host.ApplyAddresses(name, list, peers...))...)
}

// attachEndpoints has the host's endpoints in a network, and no others. It gives
// the devices of those that are attached, by name; missing are the others.
func (a *Agent) attachEndpoints(name fleet.NetworkName, endpoints []*godwitv1.Endpoint) (devices map[string]string, missing, err error) {
	devices = map[string]string{}
	var wanted []string
	var absent []error
	for _, endpoint := range endpoints {
		wanted = append(wanted, endpoint.GetDevice())
		if err := a.config.Network.AttachEndpoint(name, endpoint.GetDevice()); err != nil {
			absent = append(absent, err)
			continue
		}
		devices[endpoint.GetName()] = endpoint.GetDevice()
	}
	return devices, errors.Join(absent...), a.config.Network.KeepEndpoints(name, wanted)
}

// address says where frames for an entry go on this host: to its own device if
// the owner is here, for endpoints one of devices, by name; to the tap of a
// source that forwards; and else to the owner's host.
func (a *Agent) address(entry *godwitv1.AddressEntry, devices map[string]string) (network.Address, error) {
	mac, err := net.ParseMAC(entry.GetMac())
	if err != nil {
		return network.Address{}, fmt.Errorf("address map: %w", err)
	}
	if len(mac) != ethernetSize {
		return network.Address{}, fmt.Errorf("address map: %v is not an Ethernet address", mac)
	}
	host, err := parseAddr(entry.GetAddress())
	if err != nil {
		return network.Address{}, err
	}
	address := network.Address{MAC: mac, Host: host}
	for _, text := range entry.GetIps() {
		ip, err := parseAddr(text)
		if err != nil {
			return address, err
		}
		address.IPs = append(address.IPs, ip)
	}
	here := host == a.config.Address
	switch {
	case entry.GetVm() != "":
		address.Local, address.Hold = a.tapOf(fleet.VMName(entry.GetVm()), entry.GetPort(), here)
	case here:
		address.Local = devices[entry.GetPort()]
	}
	return address, nil
}

// parseAddr reads an IP address of a map. A zone is of another host's devices,
// and the kernel keeps none: the entry would never be as the map says.
func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err == nil && addr.Zone() != "" {
		addr, err = netip.Addr{}, fmt.Errorf("%v has a zone", addr)
	}
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address map: %w", err)
	}
	return addr, nil
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

// letIn: an earlier agent has let frames come, or returns them since, and an address
// map may say so already. It must be called with mu held.
func (m *machine) letIn() bool {
	return len(m.ports) > 0 && !slices.ContainsFunc(m.ports, func(p *port) bool {
		gate, err := p.tap.Gate()
		return err != nil || gate.Mode != network.Arriving && gate.Mode != network.Settling && gate.Mode != network.Returning
	})
}

// claim gives the tap of a port, if the machine wants its frames.
func (m *machine) claim(name string) (tap string, claims bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	unowned := m.record.Role == arriving || m.record.Role == refused
	if m.leaving || unowned && !m.receives && !m.letIn() {
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
		if port.Name == name {
			return port.tap.Name(), true
		}
	}
	return "", false
}
