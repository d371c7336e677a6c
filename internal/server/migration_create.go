package server

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"fmt"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/placement"
	"godwit.dev/godwit/internal/store"
)

// migrationRequest is what somebody wants moved.
type migrationRequest struct {
	vm     fleet.VMName
	target fleet.HostName // "" lets placement choose
	reason string
	// version is the one that the VM's record must have; zero means any.
	version int64
	policy  func(copied fleet.Bytes) (migration.Policy, error)
	// receipt keeps the answer to a request of the API.
	receipt receipt
}

// create chooses the target and, in one transaction, takes the VM's lock,
// reserves the target's capacity and records the migration; then it starts.
func (r *reconciler) create(ctx context.Context, request migrationRequest) (store.Entry[migration.Migration], error) {
	for range store.MaxConflicts {
		entry, err := r.tryCreate(ctx, request)
		if fleet.CodeOf(err) == fleet.Conflict && isRace(err) {
			continue // a record changed since it was read: choose again
		}
		if err != nil {
			return entry, err
		}
		r.Adopt(entry)
		r.Addresses.Changed()
		return entry, nil
	}
	return store.Entry[migration.Migration]{}, &fleet.Error{
		Code: fleet.Unavailable, Op: "migrate", Subject: "vm " + string(request.vm),
		Cause: "too many changes at the same time", Hint: "try again",
	}
}

// isRace tells the store's conflicts from the VM's own.
func isRace(err error) bool {
	e, ok := err.(*fleet.Error)
	return ok && e.Op == "commit"
}

func (r *reconciler) tryCreate(ctx context.Context, request migrationRequest) (store.Entry[migration.Migration], error) {
	p, err := r.plan(ctx, request)
	if err != nil {
		return store.Entry[migration.Migration]{}, err
	}
	return r.record(ctx, p, request.receipt)
}

// plan is a migration that is decided on and not recorded, with what that stands on.
type plan struct {
	migration migration.Migration
	vm        store.Entry[fleet.VM]
	on        grounds
	counter   store.Entry[uint32] // of tunnels
}

// plan decides on a migration, and changes nothing.
func (r *reconciler) plan(ctx context.Context, request migrationRequest) (plan, error) {
	var none plan
	vm, err := r.tables.vms.Get(ctx, string(request.vm))
	if err != nil {
		return none, describeMissingVM(err, request.vm)
	}
	if err := checkVersion("migrate", "vm", vm, request.version); err != nil {
		return none, err
	}
	if _, err := r.pass(ctx, "migrate", migration.MigrateVM, vm.Value); err != nil {
		return none, err
	}
	if err := movable(vm.Value); err != nil {
		return none, err
	}
	if source := vm.Value.Owner.Host; !r.Up(source) {
		return none, &fleet.Error{
			Code: fleet.Unavailable, Op: "migrate", Subject: "vm " + string(request.vm),
			Cause: fmt.Sprintf("host %s, where it is, is down: nobody there could send it", source),
			Hint:  "see that godwit agent runs there and reaches the server, and try again",
		}
	}
	policy, err := request.policy(vm.Value.Spec.Copied())
	if err != nil {
		return none, err
	}
	on, err := r.tables.grounds(ctx, vm.Value.Spec, r.Up)
	if err != nil {
		return none, err
	}
	chosen, err := placement.Choose(on.snapshot, placement.Request{
		VM: vm.Value, Source: vm.Value.Owner.Host, Want: request.target, Networks: on.networks,
	})
	if err != nil {
		return none, err
	}
	tunnels, counter, err := r.nextTunnels(ctx, vm.Value.Spec.Ports)
	if err != nil {
		return none, err
	}
	now := time.Now()
	m := migration.New(newMigrationID(now), vm.Value, chosen.Host, tunnels, policy, request.reason, now)
	noteChoice(&m, chosen, request.target)
	source := migration.SourceCapabilities(vm.Value, on.hosts[m.Source].Value)
	m.Connections, m.ConnectionsWhy = migration.Connections(source, on.hosts[m.Target].Value.QEMU.Capabilities, policy)
	m.Unheld = migration.Unheld(source)
	r.foreseer.prepare(&m, vm.Value)
	return plan{migration: m, vm: vm, on: on, counter: counter}, nil
}

// movable refuses VMs that can't be migrated as they are.
func movable(vm fleet.VM) error {
	if vm.Changing() {
		return changing("migrate", vm)
	}
	if vm.Phase == fleet.VMRunning {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Conflict, Op: "migrate", Subject: "vm " + string(vm.Name),
		Cause: fmt.Sprintf("it is %s; only a running VM can be migrated", vm.Phase),
		Hint:  fmt.Sprintf("a stopped VM starts where there is room: godwit vm start %s --host HOST", vm.Name),
	}
}

func describeMissingVM(err error, name fleet.VMName) error {
	if fleet.CodeOf(err) != fleet.NotFound {
		return err
	}
	return &fleet.Error{
		Code: fleet.NotFound, Op: "migrate", Subject: "vm " + string(name),
		Cause: "there is no VM of this name", Hint: "godwit vm list shows all",
	}
}

// record stores a planned migration with all it takes, if what it was decided
// on still stands: a target that is cordoned meanwhile takes nothing more.
func (r *reconciler) record(ctx context.Context, p plan, receipt receipt) (store.Entry[migration.Migration], error) {
	m, vm, on, counter := p.migration, p.vm, p.on, p.counter
	vm.Value.Migration = m.ID
	t := r.tables
	free, kept, err := receipt.keep(createdMessage(m))
	if err != nil {
		return store.Entry[migration.Migration]{}, err
	}
	conditions := append(free,
		t.migrations.Absent(string(m.ID)),
		t.vms.At(vm.Name, vm.Version),
		t.counters.At(tunnelCounter, counter.Version),
	)
	ops := []store.Op{
		t.migrations.Put(string(m.ID), m),
		t.vms.Put(vm.Name, vm.Value),
		t.ledgers.Put(string(m.Target), claimed(on.ledgers[m.Target].Value, m.Target, vm.Value)),
		t.counters.Put(tunnelCounter, counter.Value),
	}
	revision, err := t.store.Commit(ctx, append(conditions, on.stand(t, m.Target)...), append(ops, kept...)...)
	return store.Entry[migration.Migration]{Name: string(m.ID), Value: m, Version: revision}, err
}

// firstTunnel: the lower half of the identifiers is for networks.
const firstTunnel = 1 << 23

// tunnelCounter names the record of the newest tunnel id. Ids are given in
// turn, so that one is used again only after all others.
const tunnelCounter = "tunnel"

func (r *reconciler) nextTunnels(ctx context.Context, ports []fleet.Port) (map[string]fleet.TunnelID, store.Entry[uint32], error) {
	counter, err := r.tables.counters.Get(ctx, tunnelCounter)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return nil, counter, err
	}
	tunnels := map[string]fleet.TunnelID{}
	for _, port := range ports {
		counter.Value = max(firstTunnel, (counter.Value+1)&uint32(fleet.MaxTunnelID))
		tunnels[port.Name] = fleet.TunnelID(counter.Value)
	}
	return tunnels, counter, nil
}

var idEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// newMigrationID gives an id of which newer ones sort first: 48 bits of the
// milliseconds that are left of the era, and 16 bits that are random.
func newMigrationID(now time.Time) fleet.MigrationID {
	left := uint64(1<<48-1) - uint64(now.UnixMilli())
	var raw [8]byte
	for i := range 6 {
		raw[i] = byte(left >> (8 * (5 - i)))
	}
	_, _ = rand.Read(raw[6:]) // never fails, by its documentation
	return fleet.MigrationID("m-" + strings.ToLower(idEncoding.EncodeToString(raw[:])))
}
