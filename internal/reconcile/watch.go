package reconcile

import "godwit.dev/godwit/internal/fleet"

// Watch gives a channel that is signalled after every change of a migration,
// until stop.
func (r *Reconciler) Watch(id fleet.MigrationID) (changed <-chan struct{}, stop func()) {
	watcher := make(chan struct{}, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watchers[id] == nil {
		r.watchers[id] = map[chan struct{}]struct{}{}
	}
	r.watchers[id][watcher] = struct{}{}
	return watcher, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers[id], watcher)
		if len(r.watchers[id]) == 0 {
			delete(r.watchers, id)
		}
	}
}

// Watched reports whether anybody does.
func (r *Reconciler) Watched(id fleet.MigrationID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.watchers[id]) > 0
}

// notify signals that a migration has changed.
func (r *Reconciler) notify(id fleet.MigrationID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for watcher := range r.watchers[id] {
		select {
		case watcher <- struct{}{}:
		default: // it has not looked yet; one signal is enough
		}
	}
}
