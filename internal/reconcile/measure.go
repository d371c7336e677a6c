package reconcile

import (
	"context"
	"errors"

	"godwit.dev/godwit/internal/migration"
)

// errNoMeter: a record waits for what its server would have measured.
var errNoMeter = errors.New("this server measures nothing")

// measure has the guest measured, if the copy waits for that. It must be called with mu
// held.
func (r *Reconciler) measure(one *run) {
	m := one.entry.Value
	waits := m.Foreseen.Awaited && (m.State == migration.Planned || m.State == migration.Preparing)
	if !waits || one.measuring || !r.leads() {
		return
	}
	one.measuring = true
	life := r.lifetime()
	r.Runtime.AfterFunc(0, func() {
		measured := r.measured(life, m)
		if life.Err() == nil {
			r.post(life, m.ID, migration.Event{Kind: migration.GuestMeasured, From: "server", Measured: measured, Detail: measured.Failure})
		}
		one.mu.Lock()
		defer one.mu.Unlock()
		one.measuring = false
		r.measure(one) // once more, if that is wanted, or the event was not taken
	})
}

func (r *Reconciler) measured(life context.Context, m migration.Migration) migration.Measured {
	if r.Measure == nil {
		return migration.Measured{Guest: m.Foreseen.Guest, Failure: errNoMeter.Error()}
	}
	return r.Measure(life, m)
}
