package server

import (
	"context"
	"fmt"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// volumeHolder is the VM of which a volume is a disk. The record stays when the VM
// is deleted: to the volume server an epoch that is over is so for every VM.
type volumeHolder struct {
	VM    fleet.VMName `json:"vm,omitempty"`    // "" since it was deleted
	Epoch fleet.Epoch  `json:"epoch,omitempty"` // the last of VMs that were deleted
}

// volumeKey is the key of the record of a volume's holder.
func volumeKey(server fleet.VolumeServerName, volume fleet.VolumeName) string {
	return string(server) + "/" + string(volume)
}

// knownVolumeServers reads which volume servers there are.
func (t tables) knownVolumeServers(ctx context.Context) (map[fleet.VolumeServerName]bool, error) {
	entries, _, err := t.volumeServers.All(ctx)
	known := map[fleet.VolumeServerName]bool{}
	for _, entry := range entries {
		known[entry.Value.Name] = true
	}
	return known, err
}

// admitVolumes gives the conditions and changes that make volumes disks of a new
// VM, whose epochs begin after those of the VMs that had them before.
func (t tables) admitVolumes(ctx context.Context, vm *fleet.VM) (conditions []store.Condition, ops []store.Op, found findings, err error) {
	for i, disk := range vm.Spec.Disks {
		if disk.Kind != fleet.DiskVolume {
			continue
		}
		key := volumeKey(disk.Server, disk.Volume)
		entry, err := t.volumes.Get(ctx, key)
		if err != nil && fleet.CodeOf(err) != fleet.NotFound {
			return nil, nil, nil, err
		}
		if other := entry.Value.VM; other != "" {
			found.add(fmt.Sprintf("disks[%d].volume", i), "%s of %s is a disk of vm %s", disk.Volume, disk.Server, other)
		}
		vm.Owner.Epoch = max(vm.Owner.Epoch, entry.Value.Epoch)
		conditions = append(conditions, t.volumes.At(key, entry.Version))
		ops = append(ops, t.volumes.Put(key, volumeHolder{VM: vm.Name}))
	}
	return conditions, ops, found, nil
}

// freeVolumes gives the changes that free the volumes of a VM that is deleted.
func (t tables) freeVolumes(vm fleet.VM) (ops []store.Op) {
	for _, of := range vm.Spec.Volumes() {
		for _, volume := range of.Volumes {
			ops = append(ops, t.volumes.Put(volumeKey(of.Server, volume), volumeHolder{Epoch: vm.Owner.Epoch}))
		}
	}
	return ops
}
