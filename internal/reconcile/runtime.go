package reconcile

import (
	"sync"
	"time"
)

// Runtime is what a reconciler needs of the machine that it runs on, so that it
// also runs on a simulated one.
type Runtime interface {
	Now() time.Time
	// AfterFunc calls f after a time, beside everything else, unless stop is
	// called before.
	AfterFunc(after time.Duration, f func()) (stop func())
	// Locker gives a lock of its own, which may be held over calls to the store.
	Locker() sync.Locker
}

// machine is the real one.
type machine struct{}

func (machine) Now() time.Time { return time.Now() }

func (machine) AfterFunc(after time.Duration, f func()) (stop func()) {
	timer := time.AfterFunc(after, f)
	return func() { timer.Stop() }
}

func (machine) Locker() sync.Locker { return new(sync.Mutex) }
