package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// reconciler carries migrations on: it loads a record, lets the core decide on
// an event, saves the result and dispatches the effects, in this order. It
// holds nothing that the store does not, except the progress between saves.
type reconciler struct {
	tables    tables
	hosts     commander
	addresses addressBook
	up        func(fleet.HostName) bool // whether its agent has a session
	log       *slog.Logger

	wake chan struct{} // news has come

	mu sync.Mutex
	// life ends with the server, or when it leads no more: what is begun by a
	// call goes on after it. While it is over nothing is carried on, and only
	// what somebody asks for is decided.
	life context.Context
	runs map[fleet.MigrationID]*run // those that wait for something
	news map[fleet.MigrationID]store.Entry[migration.Migration]
}

// commander sends commands to hosts. Send fails with Unavailable when the host
// has no session; its commands are sent again when it connects.
type commander interface {
	Send(host fleet.HostName, command commandMessage) error
}

// addressBook tells when every host has applied the addresses as of a store
// revision, or newer ones, but those that are gone.
type addressBook interface {
	WhenApplied(revision int64, done func(without []fleet.HostName))
	Changed() // makes it look again
}

// run is one migration that is being carried on. mu orders its steps, and
// nothing else is locked while it is held but the watchers.
type run struct {
	mu       sync.Mutex
	entry    store.Entry[migration.Migration]
	vm       store.Entry[fleet.VM] // as last read; a conflict reads it again
	timer    *time.Timer
	armed    time.Time // At of the newest timer that this server has seen
	due      time.Time // when that one fires, by this server's own clock
	watchers map[chan struct{}]struct{}
}

func newReconciler(tables tables, hosts commander, addresses addressBook, up func(fleet.HostName) bool, log *slog.Logger) *reconciler {
	return &reconciler{
		tables: tables, hosts: hosts, addresses: addresses, up: up, log: log, life: context.Background(), wake: make(chan struct{}, 1),
		runs: map[fleet.MigrationID]*run{}, news: map[fleet.MigrationID]store.Entry[migration.Migration]{},
	}
}

// run takes up every migration that an earlier server left unfinished, and
// carries all on until ctx ends.
func (r *reconciler) run(ctx context.Context) error {
	r.mu.Lock()
	r.life = ctx
	r.mu.Unlock()
	defer r.stand()
	if err := r.resume(ctx); err != nil {
		return err
	}
	again := time.NewTicker(redispatchEvery)
	defer again.Stop()
	for {
		select {
		case <-again.C:
			r.redispatch(r.up)
		case <-ctx.Done():
			return nil
		}
	}
}

// redispatchEvery is the interval at which effects without an answer are sent
// again: a host may have tried and failed. One that is still at it, or has
// answered, knows the effect by its sequence.
const redispatchEvery = 2 * time.Second

func (r *reconciler) resume(ctx context.Context) error {
	records, _, err := r.tables.store.All(ctx, r.tables.migrations.Prefix())
	if err != nil {
		return err
	}
	for _, record := range records {
		entry, err := r.tables.migrations.Decode(record)
		if err != nil { // it must not keep the others from being carried on
			r.log.Error("a migration cannot be carried on", "migration", entry.Name, "error", err)
			continue
		}
		if !entry.Value.Over() {
			r.adopt(entry)
		}
	}
	return nil
}

// adopt begins to carry a stored migration on.
func (r *reconciler) adopt(entry store.Entry[migration.Migration]) {
	one := r.runOf(entry.Value.ID)
	one.mu.Lock()
	if one.entry.Version < entry.Version {
		one.entry = entry
	}
	r.arm(one)
	r.takeUp(one)
	one.mu.Unlock()
	if entry.Value.State == migration.Planned {
		r.post(r.lifetime(), entry.Value.ID, migration.Event{Kind: migration.Started, From: "server"})
	}
}

// takeUp sets going whatever a record asks for. It must be called with mu held.
func (r *reconciler) takeUp(one *run) {
	m := &one.entry.Value
	r.dispatch(m, m.Pending)
	if m.State == migration.Settling && m.TargetRuns && !m.AddressesKnown {
		r.awaitAddresses(m.ID, one.entry.Version)
	}
}

func (r *reconciler) runOf(id fleet.MigrationID) *run {
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.runs[id]
	if one == nil {
		one = &run{watchers: map[chan struct{}]struct{}{}}
		r.runs[id] = one
	}
	return one
}

// maxConflicts bounds how often a step is tried anew because somebody else
// changed a record of it.
const maxConflicts = 10

// advance lets one event happen: load, step, save, dispatch. It gives the
// migration after it. An error means that nothing has happened, or (wrapping
// store.ErrOutcomeUnknown) that it is not known; the same event may be posted
// again.
func (r *reconciler) advance(ctx context.Context, id fleet.MigrationID, event migration.Event) (migration.Migration, migration.Verdict, error) {
	return r.advanceIf(ctx, id, event, func(store.Entry[migration.Migration]) error { return nil })
}

// advanceIf does it only if the record that the event meets is as expected.
func (r *reconciler) advanceIf(
	ctx context.Context, id fleet.MigrationID, event migration.Event, expected func(store.Entry[migration.Migration]) error,
) (migration.Migration, migration.Verdict, error) {
	ctx = context.WithoutCancel(ctx) // a step is not left half done; the store bounds it
	one := r.runOf(id)
	one.mu.Lock()
	defer one.mu.Unlock()
	if event.At.IsZero() {
		event.At = time.Now()
	}
	var unknown error // whether the event has happened
	for tries := range maxConflicts {
		if err := r.load(ctx, one, id); err != nil {
			return migration.Migration{}, "", err
		}
		if tries > 0 { // what was saved unseen was not acted on here
			r.takeUp(one)
			one.notify()
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
			one.notify()
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
// measurement that stands in for the word of the stop, or that comes when
// nothing is to be saved any more, is not a note.
func isNote(kind migration.EventKind, before, after migration.Migration) bool {
	switch kind {
	case migration.CopyProgressed:
		return true
	case migration.SwitchMeasured:
		return before.State == after.State && !after.State.Final()
	}
	return false
}

// load reads what the run does not hold yet. Unknown migrations are NotFound.
func (r *reconciler) load(ctx context.Context, one *run, id fleet.MigrationID) error {
	if one.entry.Version != 0 {
		return nil
	}
	entry, err := r.tables.migrations.Get(ctx, string(id))
	if err != nil {
		if fleet.CodeOf(err) == fleet.NotFound {
			r.drop(id) // else somebody may wait for it
		}
		return err // what was known is kept: what is pending in it is asked for again
	}
	one.entry = entry
	r.arm(one)
	return nil
}

// stale reports whether the store has another version of the record.
func (r *reconciler) stale(ctx context.Context, one *run) (bool, error) {
	entry, err := r.tables.migrations.Get(ctx, string(one.entry.Value.ID))
	return err == nil && entry.Version != one.entry.Version, err
}

func (r *reconciler) drop(id fleet.MigrationID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, id)
}

// forget makes the next step read the records again.
func (one *run) forget() {
	one.entry.Version = 0
	one.vm.Version = 0
}

// saved does everything that had to wait for the save.
func (r *reconciler) saved(one *run, before migration.Migration, effects []migration.Effect) {
	after := &one.entry.Value
	if before.State != after.State {
		r.log.Info("migration", "id", after.ID, "vm", after.VM, "state", after.State, "cause", after.Cause)
	}
	r.arm(one)
	r.dispatch(after, effects)
	if after.TargetRuns && !before.TargetRuns {
		r.awaitAddresses(after.ID, one.entry.Version)
	}
	one.notify()
	r.dropIfOver(one)
}

// dropIfOver lets go of a run with nothing left to do: the record is all there
// will ever be. It must be called with the run's mu held.
func (r *reconciler) dropIfOver(one *run) {
	if one.entry.Value.Over() {
		r.drop(one.entry.Value.ID)
	}
}

// arm sets the clock for the migration's timer.
func (r *reconciler) arm(one *run) {
	one.disarm()
	due := one.entry.Value.Timer
	if due == nil || !r.leads() {
		return
	}
	id, at := one.entry.Value.ID, due.At
	one.timer = time.AfterFunc(one.left(*due), func() {
		if life := r.lifetime(); life.Err() == nil {
			r.post(life, id, migration.Event{Kind: migration.TimerFired, From: "server", Due: at})
		}
	})
}

// left gives how long a timer has still to run. It runs its whole time from when
// this server sees it first: another one's clock, by which its end is written,
// may be hours from this one's, and a deadline that comes too soon undoes what
// goes well.
func (one *run) left(timer migration.Timer) time.Duration {
	if !one.armed.Equal(timer.At) {
		one.armed, one.due = timer.At, time.Now().Add(timer.After)
		if timer.After == 0 {
			one.due = timer.At
		}
	}
	return time.Until(one.due)
}

func (r *reconciler) lifetime() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.life
}

// awaitAddresses posts AddressesKnown when the hosts have what the store had
// at the revision at which the target ran.
func (r *reconciler) awaitAddresses(id fleet.MigrationID, revision int64) {
	if !r.leads() {
		return
	}
	r.addresses.WhenApplied(revision, func(without []fleet.HostName) {
		r.post(r.lifetime(), id, migration.Event{Kind: migration.AddressesKnown, From: "server", Detail: unaware(without)})
	})
}

// unaware says which hosts were not waited for any longer.
func unaware(hosts []fleet.HostName) string {
	if len(hosts) == 0 {
		return ""
	}
	names := make([]string, len(hosts))
	for i, host := range hosts {
		names[i] = string(host)
	}
	return fmt.Sprintf("without word of the new address from %s, whose agent has had no session for %v; what is sent there is lost until it returns",
		strings.Join(names, " and "), goneAfter)
}

// hostConnected dispatches what waited for a host.
func (r *reconciler) hostConnected(host fleet.HostName) {
	r.redispatch(func(one fleet.HostName) bool { return one == host })
}

// redispatch sends what is pending at some hosts again.
func (r *reconciler) redispatch(at func(fleet.HostName) bool) {
	for _, one := range r.all() {
		one.mu.Lock()
		m := one.entry.Value
		var waiting []migration.Effect
		for _, effect := range m.Pending {
			if at(effect.Host) {
				waiting = append(waiting, effect)
			}
		}
		r.dispatch(&m, waiting)
		one.mu.Unlock()
	}
}

func (r *reconciler) all() (runs []*run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, one := range r.runs {
		runs = append(runs, one)
	}
	return runs
}

// watch gives a channel that is signalled after every change, until stop.
func (one *run) watch() (changed chan struct{}, stop func()) {
	changed = make(chan struct{}, 1)
	one.mu.Lock()
	one.watchers[changed] = struct{}{}
	one.mu.Unlock()
	return changed, func() {
		one.mu.Lock()
		delete(one.watchers, changed)
		one.mu.Unlock()
	}
}

// notify must be called with mu held.
func (one *run) notify() {
	for watcher := range one.watchers {
		select {
		case watcher <- struct{}{}:
		default: // it has not looked yet; one signal is enough
		}
	}
}
