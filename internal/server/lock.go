package server

import (
	"context"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// pass lets a request for a VM through the lock that a migration may have on it,
// as the core classes it: at once, with the migration's end, which it hastens
// where that is still possible, or not at all; then the error says why and when
// to try again. unlocked is the version that the VM's record had when it was
// waited for, of which the request must read it again; zero if nothing was. ctx
// bounds the waiting.
func (r *reconciler) pass(ctx context.Context, op string, request migration.Request, vm fleet.VM) (unlocked int64, err error) {
	if vm.Migration == "" {
		return 0, nil
	}
	holder, err := r.newest(ctx, op, string(vm.Migration))
	if err != nil {
		return 0, err
	}
	switch holder.Value.Class(request) {
	case migration.Allow:
		return 0, nil
	case migration.Cancel:
		err := r.cancel(ctx, vm.Migration, 0, "server", "to "+op+" the VM")
		if err != nil && fleet.CodeOf(err) != fleet.Conflict { // which says that it has committed
			return 0, err
		}
		return r.awaitEnd(ctx, op, request, holder)
	case migration.Wait:
		return r.awaitEnd(ctx, op, request, holder)
	}
	return 0, holder.Value.Blocked(op, time.Now())
}

// awaitEnd returns when the VM's lock is gone, in whichever way the migration
// ended, or when there is nothing left that is worth waiting for.
func (r *reconciler) awaitEnd(ctx context.Context, op string, request migration.Request, holder store.Entry[migration.Migration]) (unlocked int64, err error) {
	ctx, stop := untilAnswer(ctx, time.Now())
	defer stop()
	key := r.tables.migrations.Key(holder.Name)
	newest := holder.Value
	watch := r.tables.store.Watch(ctx, key, holder.Version)
	for event := range watch.Events() {
		if event.Key != key {
			continue // a longer id
		}
		if event.Deleted {
			return event.Version, nil
		}
		changed, err := r.tables.migrations.Decode(event.Record)
		if err != nil {
			return 0, err
		}
		newest = changed.Value
		switch {
		case !newest.Locked():
			return event.Version, nil // the commit that gave the lock back put both records
		case newest.Class(request) == migration.Block:
			return 0, newest.Blocked(op, time.Now())
		}
	}
	return 0, &fleet.Error{
		Code: fleet.Unavailable, Op: op, Subject: "vm " + string(holder.Value.VM),
		Cause: "migration " + holder.Name + " has not ended yet",
		Hint:  "follow it with godwit migration watch " + holder.Name + ", then " + op + " the VM", Err: watch.Err(),
		RetryAfter: newest.FreeIn(time.Now()),
	}
}

// untilAnswer ends before ctx does, so that whoever set the deadline still hears
// what was waited for.
func untilAnswer(ctx context.Context, now time.Time) (context.Context, context.CancelFunc) {
	deadline, bounded := ctx.Deadline()
	if !bounded {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Second, deadline.Sub(now)/10)))
}

// newest gives the newest that is known of a migration, with the progress that
// is not stored yet.
func (r *reconciler) newest(ctx context.Context, op, id string) (store.Entry[migration.Migration], error) {
	entry, err := r.tables.migrations.Get(ctx, id)
	if fleet.CodeOf(err) == fleet.NotFound {
		return entry, &fleet.Error{
			Code: fleet.NotFound, Op: op, Subject: "migration " + id,
			Cause: "there is no migration of this id", Hint: "godwit migration list shows all",
		}
	}
	if err != nil {
		return entry, err
	}
	if live, ok := r.Live(fleet.MigrationID(id)); ok && live.Version >= entry.Version {
		return live, nil
	}
	return entry, nil
}
