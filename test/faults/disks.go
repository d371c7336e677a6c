package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

// guestDisk is a disk of a watched VM.
type guestDisk struct {
	spec         *godwitv1.Disk
	path         string    // of its bytes
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
	return []*guestDisk{file, {spec: volume, path: server.Path(vm)}}, err
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
		all, err = append(all, seen), errors.Join(err, stopErr)
	}
	return all, err
}

// removeDisks removes the disks of a VM that has ended.
func (w *watched) removeDisks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	for _, disk := range w.disks {
		if disk.spec.GetKind() == "file" {
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
