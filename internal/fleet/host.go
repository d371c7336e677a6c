package fleet

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Host is the record of one machine that runs instances.
type Host struct {
	Name     HostName     `json:"name"`
	Address  netip.Addr   `json:"address"`            // where other hosts reach it
	PeerPort uint16       `json:"peerPort,omitempty"` // where other hosts' agents reach its agent
	CPUs     int          `json:"cpus"`               // that its VMs together may have
	Memory   Bytes        `json:"memory"`             // that its VMs together may have
	Cordoned bool         `json:"cordoned,omitempty"`
	QEMU     QEMUFeatures `json:"qemu"`
	Version  string       `json:"version"`           // of its agent
	BootID   string       `json:"bootId"`            // changes when the host reboots
	Machine  string       `json:"machine,omitempty"` // changes with the machine, but not when it reboots; "" if that is not known
	Networks HostNetworks `json:"networks,omitzero"`
	Seen     time.Time    `json:"seen"` // when its agent last said hello, or its session ended

	// Ended are instances that a reboot has ended, until their VMs' records say so.
	Ended []Instance `json:"ended,omitempty"`
}

// Instance names one QEMU process that embodies a VM.
type Instance struct {
	VM    VMName      `json:"vm"`
	UID   InstanceUID `json:"uid"`
	Epoch Epoch       `json:"epoch"`
}

// QEMUFeatures is what the QEMU can do that is installed on a host, found by
// asking it. Instances that were started before may run an older one.
type QEMUFeatures struct {
	Version   string            `json:"version"`
	Accel     string            `json:"accel"`     // "kvm" or "tcg"
	Machines  []string          `json:"machines"`  // versioned machine types
	Aliases   map[string]string `json:"aliases"`   // e.g. "q35" → "pc-q35-10.0"
	CPUModels []string          `json:"cpuModels"` // that run here with all their features

	Capabilities Capabilities `json:"capabilities,omitempty"`
}

// Capabilities are what a QEMU can do in a migration, by its own names.
type Capabilities []string

// Can reports whether the QEMU has a capability.
func (c Capabilities) Can(capability string) bool { return slices.Contains(c, capability) }

// InstanceQEMU is what the QEMU of one instance can do: it stays the one that its
// host had when the instance was started. Version is "" if that is not known.
type InstanceQEMU struct {
	Version      string       `json:"version"`
	Capabilities Capabilities `json:"capabilities,omitempty"`
}

// Equal reports whether both are the same.
func (q InstanceQEMU) Equal(other InstanceQEMU) bool {
	return q.Version == other.Version && slices.Equal(q.Capabilities, other.Capabilities)
}

// Ledger is what is reserved on one host, by VM. It is one record, so that two
// placements cannot both take the last of it.
type Ledger struct {
	Host   HostName              `json:"host"`
	Claims map[InstanceUID]Claim `json:"claims"`
}

// Sum gives what is reserved in all.
func (l Ledger) Sum() (sum Claim) {
	for _, claim := range l.Claims {
		sum.CPUs += claim.CPUs
		sum.Memory += claim.Memory
	}
	return sum
}

// Network is an overlay network, or a provider network: a bridge that each host has.
type Network struct {
	Name      NetworkName    `json:"name"`
	VNI       uint32         `json:"vni,omitempty"` // of an overlay
	MTU       int            `json:"mtu"`
	Subnets   []netip.Prefix `json:"subnets,omitempty"`
	Endpoints []Endpoint     `json:"endpoints,omitempty"`

	Bridge string `json:"bridge,omitempty"` // of a provider network
	VLAN   uint16 `json:"vlan,omitempty"`   // in that bridge; 0 is none
}

// Provider tells whether it is a provider network.
func (n Network) Provider() bool { return n.Bridge != "" }

// Segment says what carries the network's frames, and no other network's: "VNI 7",
// "bridge br0" or "VLAN 100 of bridge br0".
func (n Network) Segment() string {
	switch {
	case !n.Provider():
		return fmt.Sprintf("VNI %d", n.VNI)
	case n.VLAN == 0:
		return "bridge " + n.Bridge
	}
	return fmt.Sprintf("VLAN %d of bridge %s", n.VLAN, n.Bridge)
}

// Endpoint is an operator's own interface on a host that takes part in an
// overlay network: a gateway, a bare-metal machine, a client.
type Endpoint struct {
	Name   string       `json:"name"`
	Host   HostName     `json:"host"`
	Device string       `json:"device"`
	MAC    string       `json:"mac"`
	IPs    []netip.Addr `json:"ips,omitempty"`
}

// MaxBridges is how many bridges of a host the server hears of.
const MaxBridges = 512

// HostNetworks is what a host has of networks by itself.
type HostNetworks struct {
	Bridges []Bridge `json:"bridges,omitempty"` // by name
	// UnderlayMTU is that of the device with the host's address; 0 if it is not known.
	UnderlayMTU int `json:"underlayMTU,omitempty"`
}

// Bridge is one that an operator has made on a host.
type Bridge struct {
	Name         string `json:"name"`
	MTU          int    `json:"mtu"`
	FiltersVLANs bool   `json:"filtersVLANs,omitempty"`
}

// Bridge finds a bridge by its name.
func (n HostNetworks) Bridge(name string) (Bridge, bool) {
	at := slices.IndexFunc(n.Bridges, func(b Bridge) bool { return b.Name == name })
	if at < 0 {
		return Bridge{}, false
	}
	return n.Bridges[at], true
}

// Equal reports whether both are the same.
func (n HostNetworks) Equal(other HostNetworks) bool {
	return n.UnderlayMTU == other.UnderlayMTU && slices.Equal(n.Bridges, other.Bridges)
}
