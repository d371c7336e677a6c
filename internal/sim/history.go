package sim

import (
	"errors"
	"strings"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/sim/check"
	"godwit.dev/godwit/internal/store"
)

// ownerLog tells the check of owners what one server did with records of VMs, as
// that server saw it.
type ownerLog struct {
	*world
	seen map[version]fleet.VM
}

// version is a record as it was saved by one commit.
type version struct {
	key string
	at  int64
}

const (
	vmPrefix        = "vms/"
	migrationPrefix = "migrations/"
)

func owner(host fleet.HostName, epoch fleet.Epoch) check.Owner {
	return check.Owner{Host: string(host), Epoch: uint64(epoch)}
}

func ownerOf(vm fleet.VM) check.Owner { return owner(vm.Owner.Host, vm.Owner.Epoch) }

func (l *ownerLog) saw(record store.Record) {
	at := version{record.Key, record.Version}
	if _, known := l.seen[at]; !known && strings.HasPrefix(record.Key, vmPrefix) {
		l.seen[at] = decoded[fleet.VM](record.Value)
	}
}

// writing notes a commit that changes an owner; settle says what came of it. One
// that is cut off never does.
func (l *ownerLog) writing(conditions []store.Condition, ops []store.Op) (settle func(revision int64, err error)) {
	settle = func(int64, error) {}
	for _, op := range ops {
		if !strings.HasPrefix(op.Key(), vmPrefix) {
			continue
		}
		value, _ := op.Value()
		after := decoded[fleet.VM](value)
		before, known := l.before(op.Key(), conditions)
		if !known || before.Owner == after.Owner {
			return func(revision int64, err error) {
				if err == nil {
					l.seen[version{op.Key(), revision}] = after
				}
			}
		}
		done, failed := l.owners[l.vmNamed(after.Name).index].Swapping(l.reader(), l.now, ownerOf(before), ownerOf(after))
		settle = func(revision int64, err error) {
			switch {
			case err == nil:
				l.seen[version{op.Key(), revision}] = after
				done(l.now)
			case !errors.Is(err, store.ErrOutcomeUnknown):
				failed()
			}
		}
	}
	return settle
}

// before gives the record on whose version a commit is conditioned. That a record
// exists says nothing of its version.
func (l *ownerLog) before(key string, conditions []store.Condition) (vm fleet.VM, known bool) {
	for _, c := range conditions {
		for saw, vm := range l.seen {
			if c.Key() == key && saw.key == key && c.Holds(saw.at, 0) {
				return vm, true
			}
		}
	}
	return vm, false
}
