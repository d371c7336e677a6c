package reconcile

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// RedispatchEvery is the interval at which effects without an answer are sent
// again: a host may have tried and failed. One that is still at it, or has
// answered, knows the effect by its sequence.
const RedispatchEvery = 2 * time.Second

// RedispatchAtLeastEvery bounds the interval once no VM waits for the effects. It
// doubles with each time until then, and begins anew when the host connects.
const RedispatchAtLeastEvery = time.Minute

// rest is how long a host is left alone with what it has to clean up, in turns of
// Redispatch.
type rest struct{ length, left int }

// Redispatch sends what is pending again to every host that has a session.
func (r *Reconciler) Redispatch() {
	for _, one := range r.all() {
		one.mu.Lock()
		m := &one.entry.Value
		for _, host := range []fleet.HostName{m.Source, m.Target} {
			if r.Up(host) && one.hasTurn(host) {
				r.redispatch(one, host)
			}
		}
		one.mu.Unlock()
	}
}

// HostConnected dispatches what waited for a host.
func (r *Reconciler) HostConnected(host fleet.HostName) {
	for _, one := range r.all() {
		one.mu.Lock()
		delete(one.rests, host)
		r.redispatch(one, host)
		one.mu.Unlock()
	}
}

// redispatch sends what is pending at a host again. It must be called with the
// run's mu held.
func (r *Reconciler) redispatch(one *run, host fleet.HostName) {
	var waiting []migration.Effect
	for _, effect := range one.entry.Value.Pending {
		if effect.Host == host {
			waiting = append(waiting, effect)
		}
	}
	r.dispatch(&one.entry.Value, waiting)
}

// hasTurn reports whether it is the host's turn. It must be called once in a turn,
// with mu held.
func (one *run) hasTurn(host fleet.HostName) bool {
	if one.entry.Value.Locked() {
		return true // a VM waits
	}
	now := one.rests[host]
	if now.left > 0 {
		now.left--
		one.rests[host] = now
		return false
	}
	length := min(max(1, 2*now.length), int(RedispatchAtLeastEvery/RedispatchEvery))
	one.rests[host] = rest{length: length, left: length - 1}
	return true
}
