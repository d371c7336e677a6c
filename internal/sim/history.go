package sim

import (
	"errors"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/sim/check"
	"godwit.dev/godwit/internal/store"
)

// ownerLog tells the check of owners what one server did with records of VMs, as
// that server saw it.
type ownerLog struct {
	*world
	seen map[int64]fleet.VM // by version
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
	if strings.HasPrefix(record.Key, vmPrefix) {
		l.seen[record.Version] = decoded[fleet.VM](record.Value)
	}
}

// wrote notes a commit that changes an owner.
func (l *ownerLog) wrote(asked time.Duration, conditions []store.Condition, ops []store.Op, revision int64, err error) {
	unknown := errors.Is(err, store.ErrOutcomeUnknown)
	if err != nil && !unknown {
		return
	}
	for _, op := range ops {
		if !strings.HasPrefix(op.Key(), vmPrefix) {
			continue
		}
		value, _ := op.Value()
		after := decoded[fleet.VM](value)
		if err == nil {
			l.seen[revision] = after
		}
		for _, c := range conditions {
			for version, before := range l.seen {
				if c.Key() == op.Key() && before.Name == after.Name && version != revision && c.Holds(version, version) && before.Owner != after.Owner {
					l.owners[l.vmNamed(after.Name).index].Swapped(l.reader(), asked, l.now, ownerOf(before), ownerOf(after), !unknown)
				}
			}
		}
	}
}
