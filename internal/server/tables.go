package server

import (
	"context"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/placement"
	"godwit.dev/godwit/internal/store"
)

// tables are all records of the fleet. It is the one place where their keys
// are made.
type tables struct {
	store      *store.Store
	vms        store.Table[fleet.VM]            // by name
	hosts      store.Table[fleet.Host]          // by name
	ledgers    store.Table[fleet.Ledger]        // by host
	networks   store.Table[fleet.Network]       // by name
	migrations store.Table[migration.Migration] // by id, newest first
	counters   store.Table[uint32]              // by what is counted
}

func newTables(s *store.Store) tables {
	return tables{
		store:      s,
		vms:        store.NewTable[fleet.VM](s, "vms"),
		hosts:      store.NewTable[fleet.Host](s, "hosts"),
		ledgers:    store.NewTable[fleet.Ledger](s, "ledgers"),
		networks:   store.NewTable[fleet.Network](s, "networks"),
		migrations: store.NewTable[migration.Migration](s, "migrations"),
		counters:   store.NewTable[uint32](s, "counters"),
	}
}

// snapshot reads what a placement depends on; the ledgers come with the
// versions on which a reservation is to be conditioned.
func (t tables) snapshot(ctx context.Context, up func(fleet.HostName) bool) (placement.Snapshot, map[fleet.HostName]store.Entry[fleet.Ledger], error) {
	hosts, _, err := t.hosts.All(ctx)
	if err != nil {
		return placement.Snapshot{}, nil, err
	}
	entries, _, err := t.ledgers.All(ctx)
	if err != nil {
		return placement.Snapshot{}, nil, err
	}
	ledgers := map[fleet.HostName]store.Entry[fleet.Ledger]{}
	for _, entry := range entries {
		ledgers[entry.Value.Host] = entry
	}
	var snapshot placement.Snapshot
	for _, host := range hosts {
		snapshot.Hosts = append(snapshot.Hosts, placement.Candidate{
			Host: host.Value, Ledger: ledgers[host.Value.Name].Value, Up: up(host.Value.Name),
		})
	}
	return snapshot, ledgers, nil
}

// portNetworks gives what a host must know of the networks of a spec's ports.
func portNetworks(ctx context.Context, t tables, spec fleet.VMSpec) ([]*godwitv1.PortNetwork, error) {
	var networks []*godwitv1.PortNetwork
	for _, port := range spec.Ports {
		network, err := t.networks.Get(ctx, string(port.Network))
		if err != nil {
			return nil, err
		}
		networks = append(networks, &godwitv1.PortNetwork{Port: port.Name, Vni: network.Value.VNI, Mtu: int32(network.Value.MTU)})
	}
	return networks, nil
}

// defaultPage is the size of a page whose request names none.
const defaultPage = 100

func pageOf(request *godwitv1.PageRequest) store.Page {
	page := store.Page{After: request.GetToken(), Limit: int(request.GetSize())}
	if page.Limit <= 0 {
		page.Limit = defaultPage
	}
	return page
}
