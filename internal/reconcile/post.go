package reconcile

import (
	"context"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// postAgainEvery is the pause between tries of an event that the store does not
// take, beside the time that the store itself takes to say so.
const postAgainEvery = 500 * time.Millisecond

// post lets an event happen whose sender does not wait for the verdict.
func (r *Reconciler) post(ctx context.Context, id fleet.MigrationID, event migration.Event) {
	r.insist(id, event, r.take(ctx, id, event), func(ctx context.Context) error { return r.take(ctx, id, event) })
}

// postFrom is post for an event that a host tells of. Denied if it is not the
// host's to tell.
func (r *Reconciler) postFrom(ctx context.Context, host fleet.HostName, id fleet.MigrationID, event migration.Event) error {
	event.From = string(host)
	take := func(ctx context.Context) error {
		if _, err := r.heard(ctx, id, host, event.Kind); err != nil {
			return err
		}
		return r.take(ctx, id, event)
	}
	err := take(ctx)
	if fleet.CodeOf(err) == fleet.Denied {
		return err
	}
	r.insist(id, event, err, take)
	return nil
}

// insist tries take, whose first try gave err, until the store has answered it.
// Nobody says an event twice, and a deadline passes once: what is lost here holds
// the migration up until a later deadline, or for ever. The core knows events
// that come late.
func (r *Reconciler) insist(id fleet.MigrationID, event migration.Event, err error, take func(context.Context) error) {
	if err == nil {
		return
	}
	// An answer comes again: its effect is sent until it is taken. And after a
	// word of progress the next one says more.
	again := store.Passes(err) && event.Answers == 0 && event.Kind != migration.CopyProgressed
	life := r.lifetime()
	if life.Err() == nil {
		r.Log.Warn("an event of a migration was not taken", "migration", id, "event", event.Kind, "from", event.From, "again", again, "error", err)
	}
	if !again {
		return
	}
	r.again(life, id, event, take)
}

// again tries take after a pause, and again until the store has answered it or
// life is over.
func (r *Reconciler) again(life context.Context, id fleet.MigrationID, event migration.Event, take func(context.Context) error) {
	r.Runtime.AfterFunc(postAgainEvery, func() {
		if life.Err() != nil {
			return
		}
		err := take(life)
		if store.Passes(err) {
			r.again(life, id, event, take)
			return
		}
		r.Log.Info("an event of a migration was taken late", "migration", id, "event", event.Kind, "from", event.From, "error", err)
	})
}

// take lets an event happen, and tells of those that can't be.
func (r *Reconciler) take(ctx context.Context, id fleet.MigrationID, event migration.Event) error {
	m, verdict, err := r.Advance(ctx, id, event)
	if err == nil && verdict == migration.Late && event.Kind == migration.TargetPrepared && m.State == migration.Aborted {
		// By a command that another server had sent before the abort.
		r.dispatch(&m, []migration.Effect{{Sequence: m.Sequence, Kind: migration.ReleaseTarget, Host: m.Target}})
	}
	if err == nil && verdict == migration.Broken {
		r.Log.Error("an event of a migration can't be", "migration", id, "event", event.Kind, "from", event.From)
	}
	return err
}
