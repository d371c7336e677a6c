package server

import (
	"context"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/leases"
	"godwit.dev/godwit/internal/lifecycle"
	"godwit.dev/godwit/internal/store"
)

const (
	// grantsWithin bounds the granting of a VM's leases, and grantsAgain is the pause
	// before it is tried again.
	grantsWithin = 15 * time.Second
	grantsAgain  = 2 * time.Second
)

// volumeStarts has the leases granted with which VMs start.
type volumeStarts struct {
	book *leases.Book
	life *lifecycle.Lifecycle

	mu     sync.Mutex
	starts map[fleet.VMName]*volumeStart
}

// volumeStart is one start whose leases are being granted, or were.
type volumeStart struct {
	uid     fleet.InstanceUID
	owner   fleet.Owner
	done    bool
	servers []*godwitv1.VolumeServer
	err     error     // why they were not
	again   time.Time // when they are tried again then
}

func newVolumeStarts(book *leases.Book, life *lifecycle.Lifecycle) *volumeStarts {
	return &volumeStarts{book: book, life: life, starts: map[fleet.VMName]*volumeStart{}}
}

// Ready completes the command that starts a VM. Until the leases are granted it is
// false, and the VM is looked at again when they are; an error is what is waited for.
func (v *volumeStarts) Ready(vm fleet.VM, command *godwitv1.Command) (bool, error) {
	start := command.GetStartInstance()
	if start == nil || len(vm.Spec.Volumes()) == 0 {
		return true, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	one := v.starts[vm.Name]
	fresh := one != nil && one.uid == vm.UID && one.owner == vm.Owner
	switch {
	case fresh && !one.done:
		return false, nil
	case fresh && one.err == nil:
		delete(v.starts, vm.Name) // granted anew when it has to be sent again
		start.Instance.VolumeServers, start.VolumeKey = one.servers, v.book.Key(vm.UID, vm.Owner.Epoch, "")
		return true, nil
	case fresh && time.Now().Before(one.again):
		return false, one.err
	}
	one = &volumeStart{uid: vm.UID, owner: vm.Owner}
	v.starts[vm.Name] = one
	go v.grant(vm, one)
	return false, nil
}

func (v *volumeStarts) grant(vm fleet.VM, one *volumeStart) {
	ctx, cancel := context.WithTimeout(context.Background(), grantsWithin)
	defer cancel()
	servers, err := v.book.Grant(ctx, leases.Lease{
		VM: vm.Name, UID: vm.UID, Epoch: vm.Owner.Epoch, Host: vm.Owner.Host, Volumes: vm.Spec.Volumes(),
	})
	if err != nil {
		if told := v.life.StartWaits(ctx, vm, err, passesSoon(err)); told != nil {
			v.life.Log.Warn("not recorded what the start of a VM waits for", "vm", vm.Name, "error", told)
		}
	}
	v.mu.Lock()
	one.done, one.servers, one.err, one.again = true, servers, err, time.Now().Add(grantsAgain)
	if err != nil && !passesSoon(err) && v.starts[vm.Name] == one {
		delete(v.starts, vm.Name)
	}
	v.mu.Unlock()
	v.life.Changed(vm.Name)
}

// Ended gives what is to be stored with the end of a VM's instance.
func (v *volumeStarts) Ended(vm fleet.VM) []store.Op {
	return v.book.Ended(vm)
}
