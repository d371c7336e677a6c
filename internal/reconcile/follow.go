package reconcile

import (
	"context"
	"maps"
	"slices"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// Any server may decide a commit or an abort; the one that leads carries the
// migration on. So each takes up what the others have saved, as its mirror
// hears of it.

// leads tells whether migrations are carried on here.
func (r *Reconciler) leads() bool { return r.lifetime().Err() == nil }

// Stand makes the reconciler carry on nothing any more, until Begin. Hosts have
// sessions with others meanwhile, so that what is known of their agents is over.
func (r *Reconciler) Stand() {
	over, end := context.WithCancel(context.Background())
	end()
	r.mu.Lock()
	r.life = over
	r.agents = map[fleet.HostName]presence{}
	r.mu.Unlock()
	for _, one := range r.all() {
		one.mu.Lock()
		one.disarm()
		one.mu.Unlock()
	}
}

// Changed notes a record as the store has it. It does not block.
func (r *Reconciler) Changed(entry store.Entry[migration.Migration]) {
	r.mu.Lock()
	r.news[entry.Value.ID] = entry
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Follow takes up what was noted, until ctx ends.
func (r *Reconciler) Follow(ctx context.Context) {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		news := r.news
		r.news = map[fleet.MigrationID]store.Entry[migration.Migration]{}
		r.mu.Unlock()
		for _, id := range slices.Sorted(maps.Keys(news)) {
			r.CatchUp(ctx, news[id])
		}
	}
}

// CatchUp brings a run to what another server has saved. What this one has
// saved itself it knows already.
func (r *Reconciler) CatchUp(ctx context.Context, entry store.Entry[migration.Migration]) {
	r.mu.Lock()
	one := r.runs[entry.Value.ID]
	r.mu.Unlock()
	if one == nil {
		r.discover(ctx, entry)
		r.notify(entry.Value.ID)
		return
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.entry.Version >= entry.Version || !r.keeps(one, entry.Value.ID) {
		return
	}
	one.forget()
	one.hold(entry)
	r.arm(one)
	r.takeUp(one)
	r.notify(entry.Value.ID)
	r.dropIfOver(one)
}

// keeps reports whether a run is still the migration's: one that was let go of,
// because a term begins, is read from the store anew.
func (r *Reconciler) keeps(one *run, id fleet.MigrationID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runs[id] == one
}

// discover adopts a migration that another server has made. The record is read
// again, because of what this one has finished the news may be older.
func (r *Reconciler) discover(ctx context.Context, entry store.Entry[migration.Migration]) {
	if !r.leads() || entry.Value.Over() {
		return
	}
	now, err := r.Tables.Migrations.Get(ctx, entry.Name)
	if err != nil {
		r.Log.Warn("a migration of another server is not known yet", "migration", entry.Name, "error", err)
		return // it is adopted with its next change, or in the next term
	}
	if !now.Value.Over() {
		r.Adopt(now)
	}
}
