package server

import (
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// leftover is what an instance that has ended has left on its host: its folder
// and its taps; or an instance that is stale.
type leftover struct {
	host  fleet.HostName
	uid   string
	epoch uint64
	ended bool
}

// leave has a host remove what an ended instance has left there, as soon as no
// migration has anything left to do for it.
func (l *lifecycle) leave(host fleet.HostName, said *godwitv1.InstanceReport) {
	name, one := fleet.VMName(said.GetVm()), leftover{host, said.GetUid(), said.GetEpoch(), true}
	l.mu.Lock()
	if !slices.Contains(l.left[name], one) {
		l.left[name] = append(l.left[name], one)
	}
	l.mu.Unlock()
	l.changed(name)
}

// tidy sends what leave has noted. A host without a session says of the
// instance again when it connects, so it is not kept for that.
func (l *lifecycle) tidy(name fleet.VMName) {
	var ready []leftover
	l.mu.Lock()
	l.left[name] = slices.DeleteFunc(l.left[name], func(one leftover) bool {
		if l.mirror.moving(name, one.host) || l.owns(name, one) {
			return false // looked at again when that has changed
		}
		ready = append(ready, one)
		return true
	})
	if len(l.left[name]) == 0 {
		delete(l.left, name)
	}
	l.mu.Unlock()
	for _, one := range ready {
		l.forget(name, one)
	}
}

// owns: the VM is where one was left. It was said to have ended before it was
// started, or its end is not recorded yet.
func (l *lifecycle) owns(name fleet.VMName, one leftover) bool {
	entry, found := l.mirror.vm(name)
	sameVM := one.uid == "" || one.uid == string(entry.Value.UID)
	return found && sameVM && entry.Value.Owner == fleet.Owner{Host: one.host, Epoch: fleet.Epoch(one.epoch)}
}

// forget has a host remove an instance that is stale, or what it has left.
func (l *lifecycle) forget(name fleet.VMName, one leftover) {
	err := l.hub.Send(one.host, &godwitv1.Command{
		Subject: string(name), Epoch: one.epoch, Sequence: sequenceForget,
		Op: &godwitv1.Command_ForgetInstance{ForgetInstance: &godwitv1.ForgetInstance{Vm: string(name), Epoch: one.epoch, Uid: one.uid, Ended: one.ended}},
	})
	if err != nil {
		l.log.Warn("an instance could not be removed", "host", one.host, "vm", name, "epoch", one.epoch, "error", err)
	}
}
