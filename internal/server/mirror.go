package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// mirror follows the store: the VMs, hosts, networks and migrations as of some
// milliseconds ago. One watch over the whole store keeps them in step.
type mirror struct {
	tables tables
	log    *slog.Logger
	// They are told of every change: of a VM, a migration, the leader, and of
	// anything. They are called by one goroutine and must not block. wasOver: it
	// was known to be over before.
	vmChanged        func(fleet.VMName)
	migrationChanged func(entry store.Entry[migration.Migration], wasOver bool)
	leaderChanged    func(url string)
	changed          func()
	// ended is signalled when a record is final that was not exported so;
	// signals that nobody takes become one.
	ended chan struct{}

	mu         sync.RWMutex
	at         position
	moved      chan struct{} // closed when at is another; nil if nobody waits for that
	generation uint32        // of the store
	restored   string        // why nothing may be done, or ""
	vms        map[fleet.VMName]store.Entry[fleet.VM]
	hosts      map[fleet.HostName]fleet.Host
	networks   map[fleet.NetworkName]fleet.Network
	migrations map[fleet.MigrationID]move
}

// position is a point in the store's history of changes: a revision and, since
// one commit can change several records, how many of its changes were seen.
// After a restored store was accepted the revisions are of a new generation.
type position struct {
	generation uint32
	revision   int64
	seen       int64
}

// generationBits are those of a version below the generation: room for 2^41
// revisions.
const generationBits = 48

// version orders positions, and is the same on every server.
func (p position) version() int64 {
	return int64(p.generation)<<generationBits + p.revision*store.MaxOps + p.seen
}

// move is what the mirror keeps of a migration.
type move struct {
	vm             fleet.VMName
	source, target fleet.HostName
	over           bool // neither host has anything left to do for it
	awaitsTarget   bool // it has committed, and the target was not heard of since
	closed         bool // it is over, and does not lock the VM
	state          migration.State
	ended          time.Time
	exported       bool
	size           fleet.Bytes // of the record
}

// unexported: the migration has ended, and the record of that was not exported.
func (m move) unexported() bool { return m.state.Final() && !m.exported }

func newMirror(t tables, log *slog.Logger) *mirror {
	return &mirror{
		tables: t, log: log, vmChanged: func(fleet.VMName) {}, changed: func() {}, leaderChanged: func(string) {},
		migrationChanged: func(store.Entry[migration.Migration], bool) {}, ended: make(chan struct{}, 1),
	}
}

// load reads everything anew and gives the revision it is true for.
func (m *mirror) load(ctx context.Context) (revision int64, err error) {
	records, revision, err := m.tables.store.All(ctx, "")
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	before := m.migrations
	m.vms = map[fleet.VMName]store.Entry[fleet.VM]{}
	m.hosts = map[fleet.HostName]fleet.Host{}
	m.networks = map[fleet.NetworkName]fleet.Network{}
	m.migrations = map[fleet.MigrationID]move{}
	m.restored = ""
	leader := store.Event{Deleted: true}
	for _, record := range records {
		if record.Key == leaderKey {
			leader = store.Event{Record: record}
		}
		if err := m.put(store.Event{Record: record}); err != nil {
			m.log.Error("a record cannot be read", "key", record.Key, "error", err)
		}
	}
	m.advance(position{generation: m.generation, revision: revision, seen: store.MaxOps - 1})
	m.mu.Unlock()
	for _, name := range m.vmNames() {
		m.vmChanged(name)
	}
	for _, record := range records {
		m.tellMigration(store.Event{Record: record}, before[fleet.MigrationID(m.tables.migrations.Name(record))])
	}
	m.tellLeader(leader)
	m.changed()
	return revision, nil
}

// tellMigration hands a migration on that has changed, and was as in before.
func (m *mirror) tellMigration(event store.Event, before move) {
	if event.Deleted || !strings.HasPrefix(event.Key, m.tables.migrations.Prefix()) {
		return
	}
	if entry, err := m.tables.migrations.Decode(event.Record); err == nil { // else put has reported it
		m.migrationChanged(entry, before.over)
	}
}

// tellLeader says who leads now. A record that cannot be read names nobody.
func (m *mirror) tellLeader(event store.Event) {
	var record leaderRecord
	if !event.Deleted {
		if err := json.Unmarshal(event.Value, &record); err != nil {
			m.log.Error("a record cannot be read", "key", event.Key, "error", err)
		}
	}
	m.leaderChanged(record.URL)
}

// follow keeps the mirror up to date after a load, until ctx ends.
func (m *mirror) follow(ctx context.Context, revision int64) error {
	for {
		watch := m.tables.store.Watch(ctx, "", revision)
		for event := range watch.Events() {
			m.apply(ctx, event)
		}
		switch err := watch.Err(); {
		case ctx.Err() != nil:
			return nil
		case !errors.Is(err, store.ErrCompacted):
			return err
		}
		var err error
		if revision, err = m.loadAgain(ctx); err != nil {
			return err
		}
	}
}

// loadAgain loads as soon as the store lets it: what compacts the history makes
// the store slow as well.
func (m *mirror) loadAgain(ctx context.Context) (revision int64, err error) {
	for {
		revision, err = m.load(ctx)
		if !store.Passes(err) {
			return revision, err
		}
		m.log.Warn("the records can't be read anew yet", "error", err)
		if !rest(ctx, loadPause) {
			return 0, ctx.Err()
		}
	}
}

// loadPause is the pause after the records could not be read.
const loadPause = time.Second

func (m *mirror) apply(ctx context.Context, event store.Event) {
	if event.Key == leaderKey {
		m.tellLeader(event)
		return
	}
	table, name, _ := strings.Cut(event.Key, "/")
	switch table + "/" {
	case m.tables.vms.Prefix(), m.tables.hosts.Prefix(), m.tables.networks.Prefix():
	case m.tables.migrations.Prefix():
		m.refreshVMOf(ctx, event)
	case m.tables.counters.Prefix(), m.tables.restores.Prefix():
	default:
		return
	}
	m.mu.Lock()
	before := m.migrations[fleet.MigrationID(name)]
	next := position{generation: m.generation, revision: event.Version}
	if event.Version <= m.at.revision {
		next = m.at
		next.seen++
	}
	m.advance(next)
	err := m.put(event)
	m.mu.Unlock()
	if err != nil {
		m.log.Error("a record cannot be read", "key", event.Key, "error", err)
	}
	if table+"/" == m.tables.vms.Prefix() {
		m.vmChanged(fleet.VMName(name))
	}
	m.tellMigration(event, before)
	m.changed()
}

// refreshVMOf reads the VM of a migration before the migration's change is
// shown. One commit may change both, and whoever hears that the addresses as of
// that commit are applied must be able to rely on the VM's owner being in them.
func (m *mirror) refreshVMOf(ctx context.Context, event store.Event) {
	if event.Deleted {
		return
	}
	changed, err := m.tables.migrations.Decode(event.Record)
	if err != nil {
		return // put reports it
	}
	name := changed.Value.VM
	entry, err := m.tables.vms.Get(ctx, string(name))
	if err != nil {
		return // deleted, or the store is gone and the watch tells soon
	}
	m.mu.Lock()
	newer := entry.Version > m.vms[name].Version
	if newer {
		m.vms[name] = entry
	}
	m.mu.Unlock()
	if newer {
		m.vmChanged(name)
	}
}

// put must be called with mu held.
func (m *mirror) put(event store.Event) error {
	table, name, _ := strings.Cut(event.Key, "/")
	switch table + "/" {
	case m.tables.vms.Prefix():
		return m.putVM(event)
	case m.tables.hosts.Prefix():
		return putInto(m.hosts, fleet.HostName(name), event, m.tables.hosts, keep[fleet.Host])
	case m.tables.networks.Prefix():
		return putInto(m.networks, fleet.NetworkName(name), event, m.tables.networks, keep[fleet.Network])
	case m.tables.counters.Prefix():
		if name == generationCounter {
			return m.putGeneration(event)
		}
	case m.tables.restores.Prefix():
		return m.putRestore(event)
	case m.tables.migrations.Prefix():
		return m.putMigration(fleet.MigrationID(name), event)
	}
	return nil
}

func (m *mirror) putMigration(id fleet.MigrationID, event store.Event) error {
	err := putInto(m.migrations, id, event, m.tables.migrations, func(entry store.Entry[migration.Migration]) move {
		return moveOf(entry, fleet.Bytes(len(event.Value)))
	})
	if m.migrations[id].unexported() {
		select {
		case m.ended <- struct{}{}:
		default: // whoever takes the waiting one looks at all
		}
	}
	return err
}

func (m *mirror) putVM(event store.Event) error {
	name := fleet.VMName(m.tables.vms.Name(event.Record))
	if event.Version < m.vms[name].Version {
		return nil // refresh was faster
	}
	return putInto(m.vms, name, event, m.tables.vms, func(e store.Entry[fleet.VM]) store.Entry[fleet.VM] { return e })
}

func putInto[K comparable, T, V any](into map[K]V, key K, event store.Event, table store.Table[T], pick func(store.Entry[T]) V) error {
	if event.Deleted {
		delete(into, key)
		return nil
	}
	entry, err := table.Decode(event.Record)
	if err == nil {
		into[key] = pick(entry)
	}
	return err
}

func keep[T any](entry store.Entry[T]) T { return entry.Value }

func moveOf(entry store.Entry[migration.Migration], size fleet.Bytes) move {
	m := entry.Value
	return move{
		vm: m.VM, source: m.Source, target: m.Target, over: m.Over(), awaitsTarget: m.AwaitsTarget(), closed: m.Closed(),
		state: m.State, ended: m.Ended, exported: !m.Exported.IsZero(), size: size,
	}
}

// VM gives a VM's record.
func (m *mirror) VM(name fleet.VMName) (store.Entry[fleet.VM], bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	entry, found := m.vms[name]
	return entry, found
}

// vmNames lists all VMs, in no order.
func (m *mirror) vmNames() []fleet.VMName {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Collect(maps.Keys(m.vms))
}

// VMsOf lists the VMs that a host owns, in no order.
func (m *mirror) VMsOf(host fleet.HostName) (owned []store.Entry[fleet.VM]) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, entry := range m.vms {
		if entry.Value.Owner.Host == host {
			owned = append(owned, entry)
		}
	}
	return owned
}

// Moving reports whether a migration of the VM from or to the host still has
// something to do.
func (m *mirror) Moving(vm fleet.VMName, host fleet.HostName) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, move := range m.migrations {
		if move.vm == vm && !move.over && (move.source == host || move.target == host) {
			return true
		}
	}
	return false
}
