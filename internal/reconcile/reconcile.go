package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// Config is what a Reconciler works with.
type Config struct {
	Tables    Tables
	Hosts     Commander
	Addresses AddressBook
	// GoneAfter is how long the address book waits for a host without a session.
	GoneAfter time.Duration
	Up        func(fleet.HostName) bool // whether its agent has a session
	Runtime   Runtime                   // nil is the machine's
	Leases    Leases                    // of volumes; nil where there are none
	// Measure finds out what a forecast is made of, before the copy; nil where nobody
	// can. It may take some seconds.
	Measure func(context.Context, migration.Migration) migration.Measured
	Log     *slog.Logger
}

// Tables are the records that a migration reads and changes.
type Tables struct {
	Store      store.Records
	VMs        store.Table[fleet.VM]
	Hosts      store.Table[fleet.Host]
	Ledgers    store.Table[fleet.Ledger]
	Networks   store.Table[fleet.Network]
	Migrations store.Table[migration.Migration]
}

// Commander sends commands to hosts. Send fails with Unavailable when the host
// has no session; its commands are sent again when it connects.
type Commander interface {
	Send(host fleet.HostName, command *godwitv1.Command) error
}

// AddressBook tells when every host has applied the addresses as of a store
// revision, or newer ones, but those that are gone.
type AddressBook interface {
	WhenApplied(revision int64, done func(without []fleet.HostName))
	Changed() // makes it look again
}

// Leases is what of VMs' rights to volumes goes with their migrations.
type Leases interface {
	// Key gives what a host activates the leases of an epoch with.
	Key(uid fleet.InstanceUID, epoch fleet.Epoch, migration fleet.MigrationID) []byte
	// MigrationEnded gives what is to be stored when a migration lets go of its VM.
	MigrationEnded(vm fleet.VM, m migration.Migration) []store.Op
}

// Reconciler carries migrations on: it loads a record, lets the core decide on
// an event, saves the result and dispatches the effects, in this order. It
// holds nothing that the store does not, except progress and notes between saves.
type Reconciler struct {
	Config
	wake chan struct{} // news has come

	mu sync.Mutex
	// life ends with the server, or when it leads no more: what is begun by a
	// call goes on after it. While it is over nothing is carried on, and only
	// what somebody asks for is decided.
	life context.Context
	runs map[fleet.MigrationID]*run // those that wait for something
	news map[fleet.MigrationID]store.Entry[migration.Migration]
	// watchers are signalled; they keep no run.
	watchers map[fleet.MigrationID]map[chan struct{}]struct{}
	agents   map[fleet.HostName]presence
}

// run is one migration that is being carried on. mu orders its steps, and
// nothing else is locked while it is held but the reconciler.
type run struct {
	mu     sync.Locker
	entry  store.Entry[migration.Migration]
	notes  []heldNote            // in entry, and not in the store
	vm     store.Entry[fleet.VM] // as last read; a conflict reads it again
	disarm func()                // stops the timer; it must be called with mu held
	armed  time.Time             // At of the newest timer that this server has seen
	due    time.Time             // when that one fires, by this server's own clock
	rests  map[fleet.HostName]rest

	measuring bool // the guest
}

// New gives a reconciler that carries on what it is told of.
func New(config Config) *Reconciler {
	if config.Runtime == nil {
		config.Runtime = machine{}
	}
	return &Reconciler{
		Config: config, life: context.Background(), wake: make(chan struct{}, 1),
		runs: map[fleet.MigrationID]*run{}, news: map[fleet.MigrationID]store.Entry[migration.Migration]{},
		watchers: map[fleet.MigrationID]map[chan struct{}]struct{}{},
		agents:   map[fleet.HostName]presence{},
	}
}

// Run takes up every migration that an earlier server left unfinished, and
// carries all on until ctx ends.
func (r *Reconciler) Run(ctx context.Context) error {
	defer r.Stand()
	if err := r.Begin(ctx); err != nil {
		return err
	}
	again := time.NewTicker(RedispatchEvery)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			r.Redispatch()
		case <-ctx.Done():
			return nil
		}
	}
}

// Begin takes up every migration that an earlier server left unfinished. From
// then on, as long as life lasts, Redispatch is to be called at every
// RedispatchEvery.
func (r *Reconciler) Begin(life context.Context) error {
	r.CarryOn(life)
	return r.resume(life)
}

// CarryOn makes the reconciler carry on what it hears of until life ends. What it
// holds from before it lets go of: others may have carried that on meanwhile, and
// an order that they have had carried out must not be given again.
func (r *Reconciler) CarryOn(life context.Context) {
	r.mu.Lock()
	r.life = life
	before := inOrder(r.runs)
	r.runs = map[fleet.MigrationID]*run{}
	r.mu.Unlock()
	for _, one := range before {
		one.letGo()
	}
}

func (r *Reconciler) resume(ctx context.Context) error {
	records, _, err := r.Tables.Store.All(ctx, r.Tables.Migrations.Prefix())
	if err != nil {
		return err
	}
	for _, record := range records {
		entry, err := r.Tables.Migrations.Decode(record)
		if err != nil { // it must not keep the others from being carried on
			r.Log.Error("a migration cannot be carried on", "migration", entry.Name, "error", err)
			continue
		}
		if !entry.Value.Over() {
			r.adopt(entry, r.noteLead)
		}
	}
	return nil
}

// Adopt begins to carry a stored migration on.
func (r *Reconciler) Adopt(entry store.Entry[migration.Migration]) {
	r.adopt(entry, func(*run) {})
}

// adopt calls first with mu held, before anything is set going.
func (r *Reconciler) adopt(entry store.Entry[migration.Migration], first func(*run)) {
	one := r.runOf(entry.Value.ID)
	one.mu.Lock()
	if one.entry.Version < entry.Version {
		one.hold(entry)
	}
	first(one)
	r.arm(one)
	r.takeUp(one)
	one.mu.Unlock()
	if entry.Value.State == migration.Planned {
		r.post(r.lifetime(), entry.Value.ID, migration.Event{Kind: migration.Started, From: "server"})
	}
}

// takeUp sets going whatever a record asks for. It must be called with mu held.
func (r *Reconciler) takeUp(one *run) {
	m := &one.entry.Value
	r.dispatch(m, m.Pending)
	r.measure(one)
	if m.State == migration.Settling && m.TargetRuns && !m.AddressesKnown {
		r.awaitAddresses(m.ID, one.entry.Version)
	}
}

func (r *Reconciler) runOf(id fleet.MigrationID) *run {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.runs[id]
	if one == nil {
		one = &run{mu: r.Runtime.Locker(), disarm: func() {}, rests: map[fleet.HostName]rest{}}
		r.runs[id] = one
	}
	return one
}

// Advance lets one event happen: load, step, save, dispatch. It gives the
// migration after it. An error means that nothing has happened, or (wrapping
// store.ErrOutcomeUnknown) that it is not known; the same event may be posted
// again.
func (r *Reconciler) Advance(ctx context.Context, id fleet.MigrationID, event migration.Event) (migration.Migration, migration.Verdict, error) {
	return r.AdvanceIf(ctx, id, event, func(store.Entry[migration.Migration]) error { return nil })
}

// AdvanceIf does it only if the record that the event meets is as expected.
func (r *Reconciler) AdvanceIf(
	ctx context.Context, id fleet.MigrationID, event migration.Event, expected func(store.Entry[migration.Migration]) error,
) (migration.Migration, migration.Verdict, error) {
	ctx = context.WithoutCancel(ctx) // a step is not left half done; the store bounds it
	one := r.runOf(id)
	one.mu.Lock()
	defer one.mu.Unlock()
	if event.At.IsZero() {
		event.At = r.Runtime.Now()
	}
	var unknown error // whether the event has happened
	for tries := range store.MaxConflicts {
		if err := r.load(ctx, one, id); err != nil {
			return migration.Migration{}, "", err
		}
		if tries > 0 { // what was saved unseen was not acted on here
			r.takeUp(one)
			r.notify(id)
		}
		if err := expected(one.entry); err != nil {
			return one.entry.Value, "", cmp.Or(unknown, err)
		}
		before := one.entry.Value
		after, effects, verdict := migration.Step(before, event)
		if verdict == migration.Refuse {
			// Nobody is turned away by what another server has changed since.
			if stale, err := r.stale(ctx, one); err != nil {
				return before, "", err
			} else if stale {
				one.forget()
				continue
			}
		}
		if verdict != migration.Act {
			r.dropIfOver(one)
			return before, verdict, nil
		}
		if isNote(event.Kind, before, after) {
			one.entry.Value = after // saved with the next change of state
			r.notify(id)
			return after, verdict, nil
		}
		err := r.save(ctx, one, before, after)
		if fleet.CodeOf(err) == fleet.Conflict || errors.Is(err, store.ErrOutcomeUnknown) {
			if fleet.CodeOf(err) != fleet.Conflict {
				unknown = err
			}
			one.forget()
			continue
		}
		if err != nil {
			return before, "", err
		}
		r.saved(one, before, effects)
		return after, verdict, nil
	}
	return migration.Migration{}, "", &fleet.Error{
		Code: fleet.Unavailable, Op: string(event.Kind), Subject: "migration " + string(id),
		Cause: "its records are being changed by somebody else", Hint: "try again",
	}
}

// isNote tells steps that only add to the record. They need no save of their
// own: progress that is lost was passing anyway, and the measurement of the
// switch is asked for again. So the commit has no other save before it. A
// measurement that stands in for the word of the stop, that the commit waits for,
// or that comes when nothing is to be saved any more, is not a note.
func isNote(kind migration.EventKind, before, after migration.Migration) bool {
	switch kind {
	case migration.CopyProgressed:
		return before.State == after.State
	case migration.SwitchMeasured:
		return before.State == after.State && before.SourceSent == after.SourceSent && !after.State.Final()
	}
	return false
}

// load reads what the run does not hold yet. Unknown migrations are NotFound.
func (r *Reconciler) load(ctx context.Context, one *run, id fleet.MigrationID) error {
	if one.entry.Version != 0 {
		return nil
	}
	entry, err := r.Tables.Migrations.Get(ctx, string(id))
	if err != nil {
		if fleet.CodeOf(err) == fleet.NotFound {
			r.drop(id) // else somebody may wait for it
		}
		return err // what was known is kept: what is pending in it is asked for again
	}
	one.hold(entry)
	r.arm(one)
	return nil
}

// stale reports whether the store has another version of the record.
func (r *Reconciler) stale(ctx context.Context, one *run) (bool, error) {
	entry, err := r.Tables.Migrations.Get(ctx, string(one.entry.Value.ID))
	return err == nil && entry.Version != one.entry.Version, err
}

func (r *Reconciler) drop(id fleet.MigrationID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, id)
}

// forget makes the next step read the records again.
func (one *run) forget() {
	one.entry.Version = 0
	one.vm.Version = 0
}

// letGo makes a run that is kept no more know nothing, as whoever waits for it may
// still use it.
func (one *run) letGo() {
	one.mu.Lock()
	defer one.mu.Unlock()
	one.disarm()
	one.entry, one.vm, one.notes = store.Entry[migration.Migration]{}, store.Entry[fleet.VM]{}, nil
}

// saved does everything that had to wait for the save.
func (r *Reconciler) saved(one *run, before migration.Migration, effects []migration.Effect) {
	one.notes = nil
	after := &one.entry.Value
	if before.State != after.State {
		r.Log.Info("migration", "id", after.ID, "vm", after.VM, "state", after.State, "cause", after.Cause)
	}
	r.arm(one)
	r.dispatch(after, effects)
	r.measure(one)
	if after.TargetRuns && !before.TargetRuns {
		r.awaitAddresses(after.ID, one.entry.Version)
	}
	r.notify(after.ID)
	r.dropIfOver(one)
}

// dropIfOver lets go of a run with nothing left to do: the record is all there
// will ever be. It must be called with the run's mu held.
func (r *Reconciler) dropIfOver(one *run) {
	if one.entry.Value.Over() {
		r.drop(one.entry.Value.ID)
	}
}

// arm sets the clock for the migration's timer.
func (r *Reconciler) arm(one *run) {
	one.disarm()
	due := one.entry.Value.Timer
	if due == nil || !r.leads() {
		return
	}
	id, at := one.entry.Value.ID, due.At
	one.disarm = r.Runtime.AfterFunc(r.left(one, *due), func() {
		if life := r.lifetime(); life.Err() == nil {
			r.post(life, id, migration.Event{Kind: migration.TimerFired, From: "server", Due: at})
		}
	})
}

// left gives how long a timer has still to run. It runs its whole time from when
// this server sees it first: another one's clock, by which its end is written,
// may be hours from this one's, and a deadline that comes too soon undoes what
// goes well.
func (r *Reconciler) left(one *run, timer migration.Timer) time.Duration {
	now := r.Runtime.Now()
	if !one.armed.Equal(timer.At) {
		one.armed, one.due = timer.At, now.Add(timer.After)
		if timer.After == 0 {
			one.due = timer.At
		}
	}
	return one.due.Sub(now)
}

func (r *Reconciler) lifetime() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.life
}

// awaitAddresses posts AddressesKnown when the hosts have what the store had
// at the revision at which the target ran.
func (r *Reconciler) awaitAddresses(id fleet.MigrationID, revision int64) {
	if !r.leads() {
		return
	}
	r.Addresses.WhenApplied(revision, func(without []fleet.HostName) {
		r.post(r.lifetime(), id, migration.Event{Kind: migration.AddressesKnown, From: "server", Detail: r.unaware(without)})
	})
}

// unaware says which hosts were not waited for any longer.
func (r *Reconciler) unaware(hosts []fleet.HostName) string {
	if len(hosts) == 0 {
		return ""
	}
	names := make([]string, len(hosts))
	for i, host := range hosts {
		names[i] = string(host)
	}
	return fmt.Sprintf("without word of the new address from %s, whose agent has had no session for %v; what is sent there is lost until it returns",
		strings.Join(names, " and "), r.GoneAfter)
}

func (r *Reconciler) all() []*run {
	r.mu.Lock()
	defer r.mu.Unlock()
	return inOrder(r.runs)
}

// inOrder gives the runs by the migration's id: always in the same order.
func inOrder(runs map[fleet.MigrationID]*run) (list []*run) {
	for _, id := range slices.Sorted(maps.Keys(runs)) {
		list = append(list, runs[id])
	}
	return list
}

// Kept is how many migrations wait for something.
func (r *Reconciler) Kept() int { return len(r.all()) }

// Live gives what is held of a migration, with the progress that is not stored
// yet, if anything is.
func (r *Reconciler) Live(id fleet.MigrationID) (store.Entry[migration.Migration], bool) {
	r.mu.Lock()
	one := r.runs[id]
	r.mu.Unlock()
	if one == nil {
		return store.Entry[migration.Migration]{}, false
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	return one.entry, one.entry.Version != 0
}
