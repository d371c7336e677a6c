package sim

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/sim/check"
	"godwit.dev/godwit/internal/store"
)

// world is a fleet with everything around it.
type world struct {
	*wires
	options   Options
	etcd      *etcd
	servers   []*server
	hosts     []*host
	vms       []*vm
	guests    *check.Guests
	owners    []*check.Owners // by VM
	births    int
	readers   int
	moves     int // migrations that were asked for
	records   []*migration.Migration
	bandwidth float64 // of the links between hosts, bytes per second
	throttle  float64 // by which the links are slower at the moment
	faults    map[Fault]int
	harmful   bool  // faults go on
	losing    bool  // hosts that lose power may be declared lost
	lost      *host // that is, or will be; nil: none
	unheld    bool  // no QEMU can be held at the end of its copy: it may stop the guest by itself
}

const (
	serversPerFleet = 3
	memoryOfHost    = 64 * fleet.GiB
)

func newWorld(seed uint64, options Options, trace io.Writer) *world {
	l := newLoop(seed, trace)
	hosts, vms := 3+l.chance.IntN(3), 2+l.chance.IntN(3)
	w := &world{wires: newWires(l, 1+serversPerFleet+hosts), options: options, faults: map[Fault]int{}, harmful: true, throttle: 1, unheld: seed%2 == 1, losing: seed/2%2 == 1}
	w.guests = check.NewGuests(func() time.Duration { return l.now })
	w.bandwidth = float64(fleet.MiB) * float64(60+l.chance.IntN(900))
	w.etcd = newEtcd(w.wires, &node{0, "etcd"})
	w.etcd.broken = w.bug(Unconditional)
	for i := range vms {
		w.vms = append(w.vms, w.newVM(i))
	}
	for i := range hosts {
		w.hosts = append(w.hosts, w.newHost(i, vms))
	}
	for i := range serversPerFleet {
		w.servers = append(w.servers, newServer(w, &node{1 + i, fmt.Sprintf("s%d", i+1)}))
	}
	w.found()
	for _, h := range w.hosts {
		h.boot()
	}
	for _, s := range w.servers {
		s.start()
	}
	return w
}

func (w *world) newVM(i int) *vm {
	name := fmt.Sprintf("vm%d", i+1)
	return &vm{
		world: w, index: i, name: fleet.VMName(name), uid: fleet.InstanceUID("uid-" + name),
		memory: float64(fleet.MiB) * float64(64+w.chance.IntN(960)), dirties: float64(fleet.MiB) * float64(1+w.chance.IntN(20)),
		packets: &check.Packets{VM: name},
	}
}

func (w *world) newHost(i, vms int) *host {
	h := &host{
		world: w, node: &node{1 + serversPerFleet + i, fmt.Sprintf("h%d", i+1)}, index: i, name: fleet.HostName(fmt.Sprintf("h%d", i+1)),
		routes: make([]*host, vms), local: make([]*machine, vms), spent: map[fleet.VMName]fleet.Epoch{},
	}
	h.agent = newAgent(h)
	return h
}

func (h *host) address() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(h.index + 1)}) }

// firstOf gives the first one that is as wanted, nil if there is none.
func firstOf[T any](all []*T, wanted func(*T) bool) *T {
	if i := slices.IndexFunc(all, wanted); i >= 0 {
		return all[i]
	}
	return nil
}

func (w *world) hostAt(address string) *host {
	return firstOf(w.hosts, func(h *host) bool { return h.address().String() == address })
}

func (w *world) hostNamed(name fleet.HostName) *host {
	return firstOf(w.hosts, func(h *host) bool { return h.name == name })
}

func (w *world) vmNamed(name fleet.VMName) *vm {
	return firstOf(w.vms, func(v *vm) bool { return v.name == name })
}

func (w *world) serverNamed(name string) *server {
	return firstOf(w.servers, func(s *server) bool { return s.node.name == name })
}

// reader numbers whoever has asked the store for an owner.
func (w *world) reader() int {
	w.readers++
	return w.readers
}

// found writes the first records: hosts, VMs and what is reserved for them.
func (w *world) found() {
	t := tablesOn(client{etcd: w.etcd})
	var ops []store.Op
	ledgers := make([]fleet.Ledger, len(w.hosts))
	for i, h := range w.hosts {
		ledgers[i] = fleet.Ledger{Host: h.name, Claims: map[fleet.InstanceUID]fleet.Claim{}}
		ops = append(ops, t.Hosts.Put(string(h.name), fleet.Host{Name: h.name, Address: h.address(), PeerPort: 1, CPUs: 64, Memory: memoryOfHost}))
	}
	ops = append(ops, t.Networks.Put("blue", fleet.Network{Name: "blue", VNI: 1, MTU: 1400}))
	for _, v := range w.vms {
		first := w.chance.IntN(len(w.hosts))
		record := fleet.VM{
			Name: v.name, UID: v.uid, Owner: fleet.Owner{Host: w.hosts[first].name, Epoch: 1}, Phase: fleet.VMStarting, Created: epochStart,
			Spec: fleet.VMSpec{CPUs: 1, Memory: fleet.Bytes(v.memory), Ports: []fleet.Port{{Name: "net0", Network: "blue"}}},
		}
		ledgers[first].Claims[v.uid] = record.Spec.Claim()
		w.owners = append(w.owners, &check.Owners{VM: string(v.name), First: ownerOf(record)})
		ops = append(ops, t.VMs.Put(string(v.name), record))
	}
	for i, h := range w.hosts {
		ops = append(ops, t.Ledgers.Put(string(h.name), ledgers[i]))
	}
	w.etcd.watchers = append(w.etcd.watchers, w.noteMoves)
	if _, err := w.etcd.commit(nil, ops); err != nil {
		panic(err)
	}
}

// noteMoves keeps when the owner of each VM last changed.
func (w *world) noteMoves() {
	for _, change := range slices.Backward(w.etcd.changes) {
		if change.version != w.etcd.revision {
			return
		}
		if m := change.migration; m != nil {
			w.keep(m)
		}
		if record := change.vm; record != nil {
			v := w.vmNamed(record.Name)
			v.stored = *record
			if v.owner != record.Owner {
				if v.owner, v.moved = record.Owner, w.now; v.down() {
					v.anew = w.now
				}
			}
		}
	}
}

// keep has the newest record of each migration, in the order in which they began.
func (w *world) keep(m *migration.Migration) {
	for i, one := range slices.Backward(w.records) {
		if one.ID == m.ID {
			w.records[i] = m
			return
		}
	}
	w.records = append(w.records, m)
}

// stored reads a record as only the simulator can.
func stored[T any](w *world, key string) (value T, found bool) {
	one, found := w.etcd.records[key]
	if found {
		value = decoded[T](one.value)
	}
	return value, found
}

// leader gives a server that leads and can do something.
func (w *world) leader() *server {
	return firstOf(w.servers, func(s *server) bool { return s.proc.up && s.proc.hangs <= w.now && s.life != nil })
}

// travel has somebody ask for migrations, one after the other, until a time.
func (w *world) travel(until time.Duration) {
	w.at(nil, w.between(500*time.Millisecond, 9*time.Second), func() {
		if w.now >= until {
			return
		}
		if s := w.leader(); s != nil {
			v, target := w.vms[w.chance.IntN(len(w.vms))], w.hosts[w.chance.IntN(len(w.hosts))]
			s.spawn(s.proc, func() { s.migrate(v, target) })
		}
		w.travel(until)
	})
}

// migrate does what the server does for a request: lock, reservation and record
// in one commit.
func (s *server) migrate(v *vm, target *host) {
	ctx := context.Background()
	entry, err := s.tables.VMs.Get(ctx, string(v.name))
	vm := entry.Value
	if err != nil || vm.Migration != "" || vm.Phase != fleet.VMRunning || vm.Owner.Host == target.name || !s.connected(vm.Owner.Host) || !s.connected(target.name) {
		return
	}
	ledger, err := s.tables.Ledgers.Get(ctx, string(target.name))
	if err != nil {
		return
	}
	stands, may := s.mayTake(ctx, target)
	if !may {
		return
	}
	s.world.moves++
	id := fleet.MigrationID(fmt.Sprintf("m-%04d", s.world.moves))
	m := migration.New(id, vm, target.name, map[string]fleet.TunnelID{"net0": fleet.TunnelID(s.world.moves)}, s.policy(v), "simulated", s.Now())
	m.Unheld = s.unheld && !s.bug(Unwaiting)
	vm.Migration = id
	ledger.Value.Claims[vm.UID] = vm.Spec.Claim()
	conditions := store.If(stands, s.tables.Migrations.Absent(string(id)), s.tables.VMs.At(entry.Name, entry.Version), s.tables.Ledgers.At(ledger.Name, ledger.Version))
	revision, err := s.client.Commit(ctx, conditions, s.tables.Migrations.Put(string(id), m), s.tables.VMs.Put(entry.Name, vm), s.tables.Ledgers.Put(ledger.Name, ledger.Value))
	if err != nil {
		return
	}
	s.tell("%s: %s is to move from %s to %s", id, v.name, m.Source, m.Target)
	s.moves.Adopt(store.Entry[migration.Migration]{Name: string(id), Value: m, Version: revision})
	s.addresses.Changed()
	if s.harmful && s.one(3) {
		s.at(nil, s.between(0, 8*time.Second), func() { s.world.cancel(id) })
	}
}

func (s *server) policy(v *vm) migration.Policy {
	policy := migration.DefaultPolicy(fleet.Bytes(v.memory))
	policy.SwitchMax = s.between(time.Second, 3*time.Second)
	policy.CopyMax = s.between(20*time.Second, 100*time.Second)
	policy.PrepareMax = s.between(10*time.Second, time.Minute)
	return policy
}

// cancel is asked of any server.
func (w *world) cancel(id fleet.MigrationID) {
	s := w.servers[w.chance.IntN(len(w.servers))]
	if s.proc.up {
		s.spawn(s.proc, func() {
			_, _, _ = s.moves.Advance(context.Background(), id, migration.Event{Kind: migration.CancelAsked, From: "somebody", Detail: "by chance"})
		})
	}
}

// look has somebody ask for owners now and then, until a time.
func (w *world) look(until time.Duration) {
	w.at(nil, w.between(time.Second, 6*time.Second), func() {
		if w.now >= until {
			return
		}
		s, v := w.servers[w.chance.IntN(len(w.servers))], w.vms[w.chance.IntN(len(w.vms))]
		if s.proc.up {
			s.spawn(s.proc, func() {
				asked := s.now
				if entry, err := s.tables.VMs.Get(context.Background(), string(v.name)); err == nil {
					w.owners[v.index].Read(w.reader(), asked, w.now, ownerOf(entry.Value))
				}
			})
		}
		w.look(until)
	})
}
