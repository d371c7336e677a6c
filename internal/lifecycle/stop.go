package lifecycle

import (
	"context"
	"fmt"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// StopOrder is how a VM that is stopping was asked to be stopped. It is kept
// so that the host can be told again.
type StopOrder struct {
	Grace    time.Duration `json:"grace"`
	Sequence uint64        `json:"sequence"` // of the command
}

// Stop records the order to stop a VM that no migration holds, and gives its
// record. Asked again, with another grace time, it is a new order to the host.
// Conflict when the record has another version by now.
func (l *Lifecycle) Stop(ctx context.Context, entry store.Entry[fleet.VM], grace time.Duration) (store.Entry[fleet.VM], error) {
	before, err := l.Tables.Stops.Get(ctx, entry.Name)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return entry, err
	}
	order := StopOrder{Grace: grace, Sequence: max(sequenceFirstStop, before.Value.Sequence+1)}
	vm := entry.Value
	vm.Phase, vm.Cause = fleet.VMStopping, ""
	if l.Hosts.Session(vm.Owner.Host) == 0 {
		vm.Cause = fmt.Sprintf("host %s had no session when it was to be stopped; it is told when it returns", vm.Owner.Host)
	}
	revision, err := l.Tables.Store.Commit(ctx, store.If(l.Tables.VMs.At(entry.Name, entry.Version)),
		l.Tables.VMs.Put(entry.Name, vm), l.Tables.Stops.Put(entry.Name, order))
	if err != nil {
		return entry, err
	}
	return store.Entry[fleet.VM]{Name: entry.Name, Value: vm, Version: revision}, nil
}
