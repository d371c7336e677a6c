package sim

import (
	"context"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// missedFor is how long a VM is missing before somebody does something: what its host
// says comes before.
const missedFor = 8 * time.Second

// tend has clients start a VM that has stopped, and stop it now and then as long as
// there is harm. One that is to run and does not, while its host knows nothing of it,
// is stopped, as its cause says.
func (w *world) tend(v *vm, missed time.Duration) {
	w.at(nil, 3*time.Second, func() {
		next := time.Duration(0)
		switch s, phase := w.leader(), v.stored.Phase; {
		case s == nil || v.stored.Migration != "":
		case phase == fleet.VMStopped || phase == fleet.VMFailed:
			h := w.hosts[w.chance.IntN(len(w.hosts))]
			s.spawn(s.proc, func() { s.startVM(v, h) })
		case phase != fleet.VMRunning:
		case v.down():
			if next = missed + 3*time.Second; next > missedFor {
				s.spawn(s.proc, func() { s.stopVM(v, 0) })
			}
		case w.harmful && w.one(40):
			grace := w.between(0, 4*time.Second).Truncate(2 * time.Second)
			s.spawn(s.proc, func() { s.stopVM(v, grace) })
		}
		w.tend(v, next)
	})
}

// stopVM orders a VM to stop, unless a migration has it.
func (s *server) stopVM(v *vm, grace time.Duration) {
	entry, err := s.tables.VMs.Get(context.Background(), string(v.name))
	if err != nil || entry.Value.Migration != "" || entry.Value.Phase != fleet.VMRunning {
		return
	}
	_, err = s.lifecycle.Stop(context.Background(), entry, grace)
	s.tell("%s is to stop within %v: %v", v.name, grace, err)
}

// startVM places a VM that does not run, as the server does for a client.
func (s *server) startVM(v *vm, on *host) {
	ctx := context.Background()
	entry, err := s.tables.VMs.Get(ctx, string(v.name))
	vm := entry.Value
	if err != nil || vm.Migration != "" || vm.Phase != fleet.VMStopped && vm.Phase != fleet.VMFailed || !s.connected(on.name) {
		return
	}
	stands, may := s.mayTake(ctx, on)
	if !may {
		return
	}
	ledger, err := s.tables.Ledgers.Get(ctx, string(on.name))
	if err != nil {
		return
	}
	ledger.Value.Claims[vm.UID] = vm.Spec.Claim()
	vm.Owner, vm.Phase, vm.Cause = fleet.Owner{Host: on.name, Epoch: vm.Owner.Epoch + 1}, fleet.VMStarting, ""
	conditions := store.If(stands, s.tables.VMs.At(entry.Name, entry.Version), s.tables.Ledgers.At(ledger.Name, ledger.Version))
	_, err = s.client.Commit(ctx, conditions, s.tables.VMs.Put(entry.Name, vm), s.tables.Ledgers.Put(ledger.Name, ledger.Value))
	s.tell("%s is started on %s at epoch %d: %v", v.name, on.name, vm.Owner.Epoch, err)
}
