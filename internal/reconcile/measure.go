package reconcile

import "godwit.dev/godwit/internal/migration"

// measure has the guest measured, if the copy waits for that. It must be called with mu
// held.
func (r *Reconciler) measure(one *run) {
	m := one.entry.Value
	waits := m.Foreseen.Awaited && (m.State == migration.Planned || m.State == migration.Preparing)
	if !waits || one.measuring || r.Measure == nil || !r.leads() {
		return
	}
	one.measuring = true
	life := r.lifetime()
	r.Runtime.AfterFunc(0, func() {
		measured := r.Measure(life, m)
		one.mu.Lock()
		one.measuring = false
		one.mu.Unlock()
		if life.Err() == nil {
			r.post(life, m.ID, migration.Event{Kind: migration.GuestMeasured, From: "server", Measured: measured, Detail: measured.Failure})
		}
	})
}
