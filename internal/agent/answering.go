package agent

import (
	"context"
	"fmt"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// filesWithin is how long the files of a VM may take to be opened.
const filesWithin = 5 * time.Second

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

// filesAnswer refuses a spec of whose files one can't be opened, or does not answer: the
// VM's other commands must not wait for it.
func (m *machine) filesAnswer(ctx context.Context, spec fleet.VMSpec) error {
	ctx, cancel := context.WithTimeout(ctx, filesWithin)
	defer cancel()
	refused, late := answering(ctx, func() error { return checkFiles(spec) })
	if late != nil {
		return m.agent.notAnswering("open files", m.key.vm)
	}
	return refused
}

// notAnswering says that files of a VM are on a storage that is away.
func (a *Agent) notAnswering(op string, vm fleet.VMName) error {
	return &fleet.Error{
		Code: fleet.Unavailable, Op: op, Subject: "vm " + string(vm),
		Cause: fmt.Sprintf("its files do not answer on %s", a.config.Name), Hint: "see the storage that they are on",
	}
}
