package lifecycle

import (
	"context"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// leftover is what an instance that has ended has left on its host: its folder
// and its taps.
type leftover struct {
	host  fleet.HostName
	uid   string
	epoch uint64
}

// leave has a host remove what an ended instance has left there, as soon as no
// migration has anything left to do for it.
func (l *Lifecycle) leave(host fleet.HostName, said *godwitv1.InstanceReport) {
	name, one := fleet.VMName(said.GetVm()), leftover{host, said.GetUid(), said.GetEpoch()}
	l.mu.Lock()
	if !slices.Contains(l.left[name], one) {
		l.left[name] = append(l.left[name], one)
	}
	l.mu.Unlock()
	l.Changed(name)
}

// tidy sends what leave has noted. A host without a session says of the
// instance again when it connects, so it is not kept for that. After an error
// that passes it must be called again.
func (l *Lifecycle) tidy(ctx context.Context, name fleet.VMName) error {
	l.mu.Lock()
	left := slices.Clone(l.left[name])
	l.mu.Unlock()
	if len(left) == 0 {
		return nil
	}
	entry, err := l.Tables.VMs.Get(ctx, string(name))
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return err
	}
	// What begins a migration of the VM changes its record.
	if err := l.Records.Knows(entry.Version); err != nil {
		return err
	}
	for _, one := range left {
		if l.Records.Moving(name, one.host) || one.owns(entry.Value) {
			continue // looked at again when that has changed
		}
		l.tidied(name, one)
		l.forget(one.host, &godwitv1.ForgetInstance{Vm: string(name), Epoch: one.epoch, Uid: one.uid, Ended: true})
	}
	return nil
}

func (l *Lifecycle) tidied(name fleet.VMName, one leftover) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.left[name] = slices.DeleteFunc(l.left[name], func(other leftover) bool { return other == one })
	if len(l.left[name]) == 0 {
		delete(l.left, name)
	}
}

// owns: the VM is where one was left. It was said to have ended before it was
// started, or its end is not recorded yet.
func (one leftover) owns(vm fleet.VM) bool {
	sameVM := one.uid == "" || one.uid == string(vm.UID)
	return sameVM && vm.Owner == fleet.Owner{Host: one.host, Epoch: fleet.Epoch(one.epoch)}
}

// moving tells by the store whether a migration of the VM from or to the host
// still has something to do there. Whoever asks whether an instance is stale must
// have read the VM before: what makes an old instance the owner's again is a
// migration that began when it was the owner's, so it is among these, or over.
func (l *Lifecycle) moving(ctx context.Context, vm fleet.VMName, host fleet.HostName) (bool, error) {
	entries, _, err := l.Tables.Migrations.All(ctx)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(entries, func(entry store.Entry[migration.Migration]) bool {
		return entry.Value.VM == vm && entry.Value.Involves(host) && !entry.Value.Over()
	}), nil
}

// forget has a host remove an instance, or what it has left. Whatever was read to know that it may
// be removed, it is held against what the host has when it is told.
func (l *Lifecycle) forget(host fleet.HostName, what *godwitv1.ForgetInstance) {
	err := l.Hosts.Send(host, &godwitv1.Command{
		Subject: what.GetVm(), Epoch: what.GetEpoch(), Sequence: sequenceForget, Uid: what.GetUid(),
		Op: &godwitv1.Command_ForgetInstance{ForgetInstance: what},
	})
	if err != nil {
		l.Log.Warn("an instance could not be removed", "host", host, "vm", what.GetVm(), "epoch", what.GetEpoch(), "error", err)
	}
}
