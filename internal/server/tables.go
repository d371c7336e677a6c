package server

import (
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
)

// tables are all records of the control plane; keys are made here only.
type tables struct {
	store *store.Store

	vms        store.Table[fleet.VM]            // by name
	stops      store.Table[lifecycle.StopOrder] // by VM, while it is stopping
	hosts      store.Table[fleet.Host]          // by name
	ledgers    store.Table[fleet.Ledger]        // by host
	networks   store.Table[fleet.Network]       // by name
	addresses  store.Table[addressHolder]       // by addressKey
	vnis       store.Table[networkHolder]       // by vniKey
	vlans      store.Table[networkHolder]       // by vlanKey
	tokens     store.Table[pki.TokenRecord]     // by hash
	migrations store.Table[migration.Migration] // by id
	answers    store.Table[keptAnswer]          // by the request's id
	counters   store.Table[uint32]              // the newest of ids that are given in turn
	authority  store.Table[authorityRecord]     // authorityKey is the only one
	restores   store.Table[restoreRecord]       // restoreKey is the only one

	volumeServers store.Table[fleet.VolumeServer] // by name
	volumes       store.Table[volumeHolder]       // by volumeKey, since a VM has had it
	diskLeftovers store.Table[diskLeftover]       // by leftoverKey
}

func newTables(s *store.Store) tables {
	return tables{
		store:      s,
		vms:        store.NewTable[fleet.VM](s, "vms"),
		stops:      store.NewTable[lifecycle.StopOrder](s, "stops"),
		hosts:      store.NewTable[fleet.Host](s, "hosts"),
		ledgers:    store.NewTable[fleet.Ledger](s, "ledgers"),
		networks:   store.NewTable[fleet.Network](s, "networks"),
		addresses:  store.NewTable[addressHolder](s, "addresses"),
		vnis:       store.NewTable[networkHolder](s, "vnis"),
		vlans:      store.NewTable[networkHolder](s, "vlans"),
		tokens:     store.NewTable[pki.TokenRecord](s, "tokens"),
		migrations: store.NewTable[migration.Migration](s, "migrations"),
		answers:    store.NewTable[keptAnswer](s, "answers"),
		counters:   store.NewTable[uint32](s, "counters"),
		authority:  store.NewTable[authorityRecord](s, "authority"),
		restores:   store.NewTable[restoreRecord](s, "restores"),

		volumeServers: store.NewTable[fleet.VolumeServer](s, "volumeservers"),
		volumes:       store.NewTable[volumeHolder](s, "volumes"),
		diskLeftovers: store.NewTable[diskLeftover](s, "diskleftovers"),
	}
}

// addressHolder is who has a MAC or IP address in a network. Its record exists
// as long as the port or endpoint does, which makes addresses unique.
type addressHolder struct {
	VM       fleet.VMName `json:"vm,omitempty"`
	Port     string       `json:"port,omitempty"`
	Endpoint string       `json:"endpoint,omitempty"`
}

// networkHolder is the network that has a VXLAN network identifier, or a VLAN of a
// bridge.
type networkHolder struct {
	Network fleet.NetworkName `json:"network"`
}

// authorityRecord is the fleet's certificate authority, PEM. Whoever can read
// the store can sign certificates.
type authorityRecord struct {
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
}

const authorityKey = "ca"
