package lifecycle

import (
	"context"
	"time"
)

// Runtime is what a life cycle needs of the machine that it runs on, so that it
// also runs on a simulated one.
type Runtime interface {
	// AfterFunc calls f after a time, beside everything else, unless stop is
	// called before.
	AfterFunc(after time.Duration, f func()) (stop func())
	// Within ends ctx after a time.
	Within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc)
	Bell() Bell
}

// Bell wakes the one that waits for it.
type Bell interface {
	// Ring does not block. Rings that nobody waits for become one.
	Ring()
	// Wait returns true when it is rung, and false when ctx has ended.
	Wait(ctx context.Context) bool
}

// machine is the real one.
type machine struct{}

func (machine) AfterFunc(after time.Duration, f func()) (stop func()) {
	timer := time.AfterFunc(after, f)
	return func() { timer.Stop() }
}

func (machine) Within(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, limit)
}

func (machine) Bell() Bell { return make(signal, 1) }

type signal chan struct{}

func (s signal) Ring() {
	select {
	case s <- struct{}{}:
	default:
	}
}

func (s signal) Wait(ctx context.Context) bool {
	select {
	case <-s:
		return true
	case <-ctx.Done():
		return false
	}
}
