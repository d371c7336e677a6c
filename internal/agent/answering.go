package agent

import "context"

// answering looks at files that may not answer, as on a storage that is away. One that
// does not before ctx ends is left to a goroutine, and with it what it gives.
func answering[T any](ctx context.Context, look func() T) (T, error) {
	done := make(chan T, 1)
	go func() { done <- look() }()
	select {
	case seen := <-done:
		return seen, nil
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
