package lifecycle

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// lookAgainEvery is the pause between looks at VMs for which something could not
// be done, beside the time that the store itself takes to say so.
const lookAgainEvery = 2 * time.Second

// Config is what a Lifecycle works with.
type Config struct {
	Tables   Tables
	Records  View
	Hosts    Hosts
	Volumes  Volumes  // nil in a fleet without
	Hardware Hardware // nil where nothing has it
	Runtime  Runtime  // nil is the machine's
	Log      *slog.Logger
}

// Volumes gives hosts the leases of the volumes with which VMs start.
type Volumes interface {
	// Ready completes the command that starts a VM, or gives it a disk. Until the
	// leases are granted it is false, and Changed is called when they are; an error is what is waited for.
	Ready(fleet.VM, *godwitv1.Command) (bool, error)
	// Ended gives what is to be stored with the end of a VM's instance.
	Ended(fleet.VM) []store.Op
}

// Tables are the records that the life of a VM reads and changes.
type Tables struct {
	Store      store.Records
	VMs        store.Table[fleet.VM]
	Stops      store.Table[StopOrder] // by VM, while it is stopping
	Ledgers    store.Table[fleet.Ledger]
	Networks   store.Table[fleet.Network]
	Migrations store.Table[migration.Migration]
}

// View shows the records as of some time ago.
type View interface {
	VM(fleet.VMName) (vm store.Entry[fleet.VM], found bool)
	VMsOf(fleet.HostName) []store.Entry[fleet.VM] // that the host owns
	// Moving reports whether a migration of the VM from or to the host still has
	// something to do.
	Moving(fleet.VMName, fleet.HostName) bool
	// Knows is why it may not have all that was stored until a revision:
	// Unavailable, or nil if it has.
	Knows(revision int64) error
}

// Hosts are the sessions of the hosts' agents. None of it waits.
type Hosts interface {
	// Session tells the sessions of a host apart; 0 means that it has none.
	Session(fleet.HostName) uint64
	// Send fails with Unavailable when the host has no session.
	Send(fleet.HostName, *godwitv1.Command) error
	// SendIn is Send into one session only: Unavailable when the host has another.
	SendIn(session uint64, host fleet.HostName, command *godwitv1.Command) error
	// End makes the session of a host end, if it has one.
	End(host fleet.HostName, cause error)
}

// Lifecycle makes hosts do what the records of VMs say: VMs that are starting
// or stopping have their command sent, after every change of the record and
// after every reconnect, and what hosts report moves the record on. What fails
// in passing is done later: it looks at the VM again, and lets a host say again
// what it said. It is safe for concurrent use.
type Lifecycle struct {
	Config
	bell Bell // something is dirty

	mu    sync.Mutex
	leads []store.Condition // hold as long as the term does
	dirty map[fleet.VMName]bool
	told  map[fleet.VMName]order
	// waiting are the VMs that are looked at again when the rest is over.
	waiting map[fleet.VMName]bool
	resting bool
	// held are ends of instances that no record tells of yet. Of those whose
	// VM a migration has locked it is only known what they mean when it has
	// ended.
	held  map[fleet.VMName]*heldReport
	cards map[fleet.VMName]map[fleet.Slot]heldCard
	left  map[fleet.VMName][]leftover
}

// New gives a life cycle that does nothing before Run.
func New(config Config) *Lifecycle {
	if config.Runtime == nil {
		config.Runtime = machine{}
	}
	return &Lifecycle{
		Config: config, bell: config.Runtime.Bell(),
		dirty: map[fleet.VMName]bool{}, told: map[fleet.VMName]order{},
		held: map[fleet.VMName]*heldReport{}, cards: map[fleet.VMName]map[fleet.Slot]heldCard{}, left: map[fleet.VMName][]leftover{},
	}
}

// Begin makes what is decided from now on that of a term, as long as its
// conditions hold.
func (l *Lifecycle) Begin(leads []store.Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leads = leads
	clear(l.cards) // another leader may have given the slots to others since; hosts say it again
}

// commit is the store's, for as long as this server leads: another leader has told
// hosts other things meanwhile, and what was answered here is an old answer.
func (l *Lifecycle) commit(ctx context.Context, conditions []store.Condition, ops ...store.Op) error {
	l.mu.Lock()
	conditions = slices.Concat(conditions, l.leads)
	l.mu.Unlock()
	_, err := l.Tables.Store.Commit(ctx, conditions, ops...)
	return err
}

// Changed says that VMs' records, or the session of their host, have changed. It
// does not block.
func (l *Lifecycle) Changed(names ...fleet.VMName) {
	l.mu.Lock()
	for _, name := range names {
		l.dirty[name] = true
	}
	l.mu.Unlock()
	l.bell.Ring()
}

// Run looks after changed VMs until ctx ends, and again after those that had to
// wait.
func (l *Lifecycle) Run(ctx context.Context) {
	l.mu.Lock()
	l.waiting = map[fleet.VMName]bool{}
	l.mu.Unlock()
	for l.bell.Wait(ctx) {
		for _, name := range l.takeDirty() {
			err := l.Look(ctx, name)
			if ctx.Err() != nil {
				return
			}
			waited := l.wait(name, store.Passes(err))
			if err != nil && !waited {
				l.Log.Warn("what a VM needs could not be done", "vm", name, "again", store.Passes(err), "error", err)
			}
		}
		l.lookLater()
	}
}

// takeDirty gives what has changed, always in the same order.
func (l *Lifecycle) takeDirty() []fleet.VMName {
	l.mu.Lock()
	defer l.mu.Unlock()
	names := slices.Sorted(maps.Keys(l.dirty))
	clear(l.dirty)
	return names
}

// wait notes whether a VM is to be looked at again, and tells whether it was.
func (l *Lifecycle) wait(name fleet.VMName, waits bool) (waited bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waited = l.waiting[name]
	if waits {
		l.waiting[name] = true
	} else {
		delete(l.waiting, name)
	}
	return waited
}

// lookLater has the VMs that wait looked at again after a while.
func (l *Lifecycle) lookLater() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 || l.resting {
		return
	}
	l.resting = true
	l.Runtime.AfterFunc(lookAgainEvery, func() {
		l.mu.Lock()
		l.resting = false
		names := slices.Collect(maps.Keys(l.waiting))
		l.mu.Unlock()
		l.Changed(names...)
	})
}

// Look does what a VM's record asks for. After an error that passes it must be
// called again.
func (l *Lifecycle) Look(ctx context.Context, name fleet.VMName) error {
	return errors.Join(l.tidy(ctx, name), l.moveOn(ctx, name))
}

// moveOn records what is held of a VM, and tells its host what is to be done.
func (l *Lifecycle) moveOn(ctx context.Context, name fleet.VMName) error {
	entry, found := l.Records.VM(name)
	if !found {
		l.mu.Lock()
		delete(l.told, name)
		delete(l.held, name)
		delete(l.cards, name)
		l.mu.Unlock()
		return nil
	}
	vm := entry.Value
	if vm.Migration == "" {
		if err := errors.Join(l.settleHeld(ctx, name), l.settleCards(ctx, name)); err != nil {
			return err
		}
	}
	if wants(vm) {
		return l.tell(ctx, vm.Owner.Host, name)
	}
	return nil
}
