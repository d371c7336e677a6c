package server

import (
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/leases"
	"godwit.dev/godwit/internal/store"
)

// hardware knows what disks and ports hold besides their VM's record: volumes, leases
// and addresses.
type hardware struct {
	tables tables
	book   *leases.Book
}

// Settled implements lifecycle.Hardware.
func (h hardware) Settled(vm fleet.VM, change fleet.Change) []store.Op {
	if change.Remove != (change.State == fleet.ChangeDone) {
		return nil // the VM has the card
	}
	free := vm
	if !change.Remove { // a volume was not used, as far as this server knows
		free.Owner.Epoch--
	}
	ops := h.tables.freeCard(free, change)
	if change.Disk != nil && change.Disk.Kind == fleet.DiskVolume {
		var added fleet.MigrationID
		if !change.Remove {
			added = grantOf(change)
		}
		ops = append(ops, h.book.Removed(vm, *change.Disk, added))
	}
	return ops
}

// freeCard gives the changes that free the volume or the addresses of a card that a
// VM has no more.
func (t tables) freeCard(vm fleet.VM, change fleet.Change) (ops []store.Op) {
	if change.Disk != nil {
		vm.Spec = fleet.VMSpec{Disks: []fleet.Disk{*change.Disk}}
		return t.freeVolumes(vm)
	}
	for _, key := range addressKeysOf(fleet.VMSpec{Ports: []fleet.Port{*change.Port}}) {
		ops = append(ops, t.addresses.Delete(key))
	}
	return ops
}
