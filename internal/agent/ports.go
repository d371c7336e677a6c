package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
)

// port is a VM's network interface on this host. Nothing but its tunnel changes,
// and that by the worker while no copy is under way.
type port struct {
	portRecord
	tap *network.Tap
}

// makePorts makes a tap for each port of the spec, and writes the record.
func (m *machine) makePorts(spec fleet.VMSpec, networks []*godwitv1.PortNetwork, gate network.Gate) error {
	byPort := map[string]*godwitv1.PortNetwork{}
	for _, one := range networks {
		byPort[one.GetPort()] = one
	}
	var taps []portRecord
	for _, want := range spec.Ports {
		known := byPort[want.Name]
		taps = append(taps, m.portRecord(want, known))
	}
	next := m.record
	next.Ports = taps
	if err := m.note(next); err != nil {
		return err
	}
	for i, tap := range taps {
		if err := m.makePort(tap, byPort[spec.Ports[i].Name], gate); err != nil {
			return err
		}
	}
	return nil
}

func (m *machine) portRecord(want fleet.Port, known *godwitv1.PortNetwork) portRecord {
	return portRecord{
		Name: want.Name, Network: want.Network, MAC: want.MAC, Queues: max(1, want.Queues),
		Tap: tapName(m.key, want.Name), MTU: int(known.GetMtu()), Tunnel: fleet.TunnelID(known.GetTunnel()),
		Bridge: known.GetBridge(), VLAN: uint16(known.GetVlan()), IPs: want.IPs,
	}
}

func (m *machine) makePort(want portRecord, known *godwitv1.PortNetwork, gate network.Gate) error {
	host := m.agent.config.Network
	if want.Bridge == "" {
		err := host.EnsureNetwork(network.Network{Name: want.Network, VNI: known.GetVni(), MTU: want.MTU})
		if err != nil {
			return err
		}
	}
	config, err := want.tapConfig(gate)
	if err != nil {
		return err
	}
	tap, err := host.CreateTap(config)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.ports = append(m.ports, &port{want, tap})
	m.mu.Unlock()
	if want.Bridge == "" {
		return m.agent.reapply(want.Network)
	}
	if gate.Mode == network.Pass { // no target, which is not to have its frames yet
		return tap.Claim()
	}
	return nil
}

func (p portRecord) tapConfig(gate network.Gate) (network.TapConfig, error) {
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return network.TapConfig{}, fmt.Errorf("port %s: %w", p.Name, err)
	}
	return network.TapConfig{
		Name: p.Tap, Network: p.Network, Bridge: p.Bridge, VLAN: p.VLAN, MAC: mac, Queues: p.Queues, MTU: p.MTU, Gate: gate,
	}, nil
}

// tapName gives the name of a port's device: it depends on the epoch, so that
// the taps of two epochs of a VM on one host are two.
func tapName(key machineKey, port string) string {
	hash := fnv.New64a()
	fmt.Fprintf(hash, "%s/%d/%s", key.vm, key.epoch, port)
	return fmt.Sprintf("%s%012x", network.TapPrefix, hash.Sum64()&(1<<48-1))
}

// removePorts removes the taps, and the tunnels to them.
func (m *machine) removePorts() error {
	m.mu.Lock()
	ports := m.ports
	m.ports = nil
	m.mu.Unlock()
	var errs []error
	for _, port := range ports {
		errs = append(errs, m.removeTap(port))
	}
	return errors.Join(errs...)
}

// removeTap removes a port's tap, and closes its tunnel.
func (m *machine) removeTap(port *port) (err error) {
	if port.Tunnel != 0 {
		err = m.agent.config.Network.CloseTunnel(port.Tunnel)
	}
	err = errors.Join(err, port.tap.Remove())
	m.agent.dropTap(port.Tap)
	return err
}

// removePort removes the tap of one port, if there is one.
func (m *machine) removePort(name string) error {
	m.mu.Lock()
	at := slices.IndexFunc(m.ports, func(p *port) bool { return p.Name == name })
	var removed *port
	if at >= 0 {
		removed = m.ports[at]
		m.ports = slices.Delete(slices.Clone(m.ports), at, at+1)
	}
	m.mu.Unlock()
	if removed != nil {
		if err := m.removeTap(removed); err != nil {
			return err
		}
	}
	next := m.record
	next.Ports = slices.DeleteFunc(slices.Clone(next.Ports), func(p portRecord) bool { return p.Name == name })
	return m.note(next)
}

func (m *machine) networks() (names []fleet.NetworkName) {
	for _, port := range m.ports {
		names = append(names, port.Network)
	}
	return names
}

// allPorts gives the ports as they are now, to any goroutine.
func (m *machine) allPorts() []*port {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.ports)
}

// setGates sets the gate of every port; rule gives it.
func (m *machine) setGates(rule func(*port) network.Gate) error {
	var errs []error
	for _, port := range m.allPorts() {
		gate := rule(port)
		gate.Epoch = m.key.epoch
		errs = append(errs, port.tap.SetGate(gate))
	}
	return errors.Join(errs...)
}

// setMode sets the gate of every port to a mode without a remote.
func (m *machine) setMode(mode network.Mode) error {
	return m.setGates(func(*port) network.Gate { return network.Gate{Mode: mode} })
}

// pointGates sets the gate of every port to a mode that sends frames to a remote.
func (m *machine) pointGates(mode network.Mode, remote netip.Addr) error {
	return m.setGates(func(p *port) network.Gate { return network.Gate{Mode: mode, Tunnel: p.Tunnel, Remote: remote} })
}

// openTunnels lets frames that the target returns after an abort come to the
// taps.
func (m *machine) openTunnels(tunnels []*godwitv1.PortNetwork) error {
	var errs []error
	next := m.record
	next.Ports = slices.Clone(next.Ports)
	for _, tunnel := range tunnels {
		for _, port := range m.ports {
			at := slices.IndexFunc(next.Ports, func(p portRecord) bool { return p.Name == port.Name })
			if port.Name != tunnel.GetPort() || at < 0 {
				continue
			}
			id := fleet.TunnelID(tunnel.GetTunnel())
			if port.Tunnel != 0 && port.Tunnel != id { // of a migration before
				errs = append(errs, m.agent.config.Network.CloseTunnel(port.Tunnel))
			}
			m.mu.Lock()
			port.Tunnel, next.Ports[at].Tunnel = id, id
			m.mu.Unlock()
			errs = append(errs, m.agent.config.Network.OpenTunnel(id, port.tap))
		}
	}
	return errors.Join(append(errs, m.note(next))...)
}

// drainTo returns the frames that wait in the taps to another host.
func (m *machine) drainTo(ctx context.Context, address string) (frames int, err error) {
	remote, err := netip.ParseAddr(address)
	if err != nil {
		return 0, &fleet.Error{Code: fleet.Invalid, Op: "return frames", Subject: "vm " + string(m.key.vm), Cause: err.Error()}
	}
	if err := m.pointGates(network.Returning, remote); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, returnWithin)
	defer cancel()
	return m.drain(ctx)
}

// drain sends what waits in the taps through their gates.
func (m *machine) drain(ctx context.Context) (frames int, err error) {
	var errs []error
	for _, port := range m.allPorts() {
		sent, err := port.tap.Drain(ctx)
		frames += sent
		errs = append(errs, err)
	}
	return frames, errors.Join(errs...)
}
