package server

import (
	"context"
	"fmt"
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

// volumeStarts has the leases granted with which VMs start, or get a volume.
type volumeStarts struct {
	book *leases.Book
	life *lifecycle.Lifecycle

	mu     sync.Mutex
	starts map[fleet.VMName]*volumeStart
}

// volumeStart is one start, or change, whose leases are being granted, or were.
type volumeStart struct {
	lease   leases.Lease
	done    bool
	servers []*godwitv1.VolumeServer
	err     error     // why they were not
	again   time.Time // when they are tried again then
}

func newVolumeStarts(book *leases.Book, life *lifecycle.Lifecycle) *volumeStarts {
	return &volumeStarts{book: book, life: life, starts: map[fleet.VMName]*volumeStart{}}
}

// Ready completes the command that starts a VM, or gives it a volume. Until the leases
// are granted it is false, and the VM is looked at again when they are; an error is
// what is waited for.
func (v *volumeStarts) Ready(vm fleet.VM, command *godwitv1.Command) (bool, error) {
	lease := leaseOf(vm, command)
	if len(lease.Volumes) == 0 {
		return true, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	one := v.starts[vm.Name]
	fresh := one != nil && one.isOf(lease)
	switch {
	case fresh && !one.done:
		return false, nil
	case fresh && one.err == nil:
		delete(v.starts, vm.Name) // granted anew when it has to be sent again
		complete(command, one.servers, v.book.Key(lease.UID, lease.Epoch, lease.Migration))
		return true, nil
	case fresh && time.Now().Before(one.again):
		return false, one.err
	}
	one = &volumeStart{lease: lease}
	v.starts[vm.Name] = one
	go v.grant(vm, one)
	return false, nil
}

// leaseOf gives the lease that a command needs.
func leaseOf(vm fleet.VM, command *godwitv1.Command) leases.Lease {
	lease := leases.Lease{VM: vm.Name, UID: vm.UID, Epoch: vm.Owner.Epoch, Host: vm.Owner.Host}
	switch change := command.GetChangeHardware(); {
	case command.GetStartInstance() != nil:
		lease.Volumes = vm.Spec.Volumes()
	case change.GetDisk() != nil && !change.GetRemove():
		lease.Volumes, lease.Migration = fleet.VMSpec{Disks: []fleet.Disk{*vm.Change.Disk}}.Volumes(), grantOf(*vm.Change)
	}
	return lease
}

// grantOf names the grant with which a volume is added to a VM that runs, in place of
// a migration: so its key is no other's.
func grantOf(change fleet.Change) fleet.MigrationID {
	return fleet.MigrationID(fmt.Sprintf("change-%d", change.Sequence))
}

func (o *volumeStart) isOf(lease leases.Lease) bool {
	return o.lease.UID == lease.UID && o.lease.Epoch == lease.Epoch && o.lease.Host == lease.Host && o.lease.Migration == lease.Migration
}

func complete(command *godwitv1.Command, servers []*godwitv1.VolumeServer, key []byte) {
	if change := command.GetChangeHardware(); change != nil {
		change.VolumeServer, change.VolumeKey = servers[0], key
		return
	}
	start := command.GetStartInstance()
	start.Instance.VolumeServers, start.VolumeKey = servers, key
}

func (v *volumeStarts) grant(vm fleet.VM, one *volumeStart) {
	ctx, cancel := context.WithTimeout(context.Background(), grantsWithin)
	defer cancel()
	grant := v.book.Grant
	if one.lease.Migration != "" && !vm.Change.Untold { // a change that was granted before its host was told
		grant = v.book.Places
	}
	servers, err := grant(ctx, one.lease)
	if err != nil {
		if told := v.refused(ctx, vm, one, err); told != nil {
			v.life.Log.Warn("not recorded what a VM that wants volumes waits for", "vm", vm.Name, "error", told)
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

// refused records why leases are not granted. A start waits, if that passes; a change
// has failed, since the VM runs on without, and can't be moved while it waits.
func (v *volumeStarts) refused(ctx context.Context, vm fleet.VM, one *volumeStart, cause error) error {
	if one.lease.Migration != "" {
		return v.life.FailChange(ctx, vm, cause)
	}
	return v.life.StartWaits(ctx, vm, cause, passesSoon(cause))
}

// Ended gives what is to be stored with the end of a VM's instance.
func (v *volumeStarts) Ended(vm fleet.VM) []store.Op {
	return v.book.Ended(vm)
}
