package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

// guestDisk is a disk of a watched VM.
type guestDisk struct {
	spec         *godwitv1.Disk
	path         string    // of its bytes; a local disk's is known at the end
	saw          *follower // nil until it is followed
	acknowledged uint64    // the last record that the guest has said to be written
}

// makeDisks makes a disk of each kind that a VM may have, of so many bytes.
func makeDisks(ctx context.Context, f *fleetlab.Fleet, vm string, size int64) ([]*guestDisk, error) {
	path := filepath.Join(f.Lab.Dir(), vm+".raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(path, size); err != nil {
		return nil, err
	}
	file := &guestDisk{spec: &godwitv1.Disk{Name: "file", Kind: "file", Path: path, Format: "raw"}, path: path}
	server := f.VolumeServer(storageHost)
	volume, err := server.Disk(ctx, vm, fleet.Bytes(size))
	local := &godwitv1.Disk{Name: "local", Kind: string(fleet.DiskLocal), Format: "raw", SizeBytes: uint64(size)}
	return []*guestDisk{file, {spec: volume, path: server.Path(vm)}, {spec: local}}, err
}

// end ends the VM, opens its local disks, which go with it, and deletes it.
func (w *watched) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, returnWithin)
	defer cancel()
	if err := w.guest.Stop(ctx); err != nil {
		return err
	}
	if err := w.followLocal(ctx); err != nil {
		return err
	}
	return w.guest.Delete(ctx)
}

// followLocal opens the local disks of a VM that has ended, where it had them last.
func (w *watched) followLocal(ctx context.Context) error {
	vm, err := w.guest.Record(ctx)
	if err != nil {
		return err
	}
	images, err := w.fleet.LocalImages(vm.GetLocalHost())
	if err != nil {
		return err
	}
	for _, disk := range w.disks {
		if disk.spec.GetKind() != string(fleet.DiskLocal) {
			continue
		}
		if len(images) == 0 {
			return fmt.Errorf("its local disk is not on %s", vm.GetLocalHost())
		}
		if disk.saw, err = follow(disk.spec.GetName(), images[len(images)-1]); err != nil {
			return err
		}
	}
	return nil
}

// stopFollowing gives what was seen on the disks that are followed. The guest must
// not write any more.
func (w *watched) stopFollowing() (all []written, err error) {
	for _, disk := range w.disks {
		if disk.saw == nil {
			continue
		}
		seen, stopErr := disk.saw.stop()
		seen.acknowledged = disk.acknowledged
		if disk.path == "" {
			seen.at = nil // all was read at the end
		}
		all, err = append(all, seen), errors.Join(err, stopErr)
	}
	return all, err
}

// removeDisks removes the disks of a VM that has ended.
func (w *watched) removeDisks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	for _, disk := range w.disks {
		switch disk.spec.GetKind() {
		case string(fleet.DiskLocal):
			continue // the VM's deletion removes it
		case string(fleet.DiskFile):
			if err := os.Remove(disk.path); err != nil {
				return err
			}
			continue
		}
		err := poll(ctx, "volume "+disk.spec.GetVolume()+" to be let go", func() (bool, error) {
			_, err := w.fleet.VolumeServer(storageHost).API.Delete(ctx, &godwitv1.DeleteVolumeRequest{Name: disk.spec.GetVolume()})
			if fleet.CodeOf(err) == fleet.Conflict {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
