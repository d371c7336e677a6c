package leases

import (
	"context"
	"fmt"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// The pauses between tries to release double from the first to the longest.
const (
	releaseAgainMin = 2 * time.Second
	releaseAgainMax = time.Minute
)

// release is a lease that nobody uses any more.
type release struct {
	VM      fleet.VMName       `json:"vm"`
	UID     fleet.InstanceUID  `json:"uid"`
	Epoch   fleet.Epoch        `json:"epoch"`
	Volumes []fleet.VolumesOf  `json:"volumes"`
	Only    *fleet.MigrationID `json:"only,omitempty"` // the grant of this one, since the epoch may be granted anew
}

func (b *Book) put(one release) store.Op {
	key := fmt.Sprintf("%s.%d", one.UID, one.Epoch)
	if one.Only != nil {
		key += "." + string(*one.Only)
	}
	return b.releases.Put(key, one)
}

// Ended gives what is to be stored together with the end of a VM's instance, by
// its record before that.
func (b *Book) Ended(vm fleet.VM) []store.Op {
	volumes := vm.Spec.Volumes()
	if len(volumes) == 0 {
		return nil
	}
	return []store.Op{b.put(release{VM: vm.Name, UID: vm.UID, Epoch: vm.Owner.Epoch, Volumes: volumes})}
}

// Removed gives what is to be stored when a volume stops being a disk of a VM that
// runs, or did not become one, by the key of the grant that it was added with; "" of
// whichever it has.
func (b *Book) Removed(vm fleet.VM, disk fleet.Disk, added fleet.MigrationID) store.Op {
	one := release{
		VM: vm.Name, UID: vm.UID, Epoch: vm.Owner.Epoch, Volumes: fleet.VMSpec{Disks: []fleet.Disk{disk}}.Volumes(),
	}
	if added != "" {
		one.Only = &added
	}
	// Not by the disk's name: the next disk of that name may be another volume.
	return b.releases.Put(fmt.Sprintf("%s.%d.volume.%s.%s.%s", one.UID, one.Epoch, disk.Server, disk.Volume, added), one)
}

// MigrationEnded gives what is to be stored when a migration lets go of its VM. Of
// one that moved it, or gave it back after the commit, nothing is left: its owner's
// lease has ended the others.
func (b *Book) MigrationEnded(vm fleet.VM, m migration.Migration) (ops []store.Op) {
	volumes := vm.Spec.Volumes()
	if len(volumes) == 0 {
		return nil
	}
	one := release{VM: vm.Name, UID: vm.UID, Volumes: volumes}
	if m.Down() {
		for one.Epoch = m.Epoch; one.Epoch <= m.Owner().Epoch; one.Epoch++ {
			ops = append(ops, b.put(one))
		}
	}
	if !m.Committed {
		one.Epoch, one.Only = m.Epoch+1, &m.ID
		ops = append(ops, b.put(one))
	}
	return ops
}

// Run releases what has to be released, until ctx ends.
func (b *Book) Run(ctx context.Context) {
	pause := releaseAgainMin
	for ctx.Err() == nil {
		if left := b.turn(ctx, pause); left {
			pause = min(2*pause, releaseAgainMax)
		} else {
			pause = releaseAgainMin
		}
	}
}

// turn tries all that is there, and returns when there is more or, if some is left,
// after a pause.
func (b *Book) turn(ctx context.Context, pause time.Duration) (left bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	revision, left := b.releaseAll(ctx)
	if !left {
		pause = releaseAgainMax
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	changes := b.releases.Watch(ctx, revision).Events()
	for {
		select {
		case event, open := <-changes:
			switch {
			case !open: // the timer tells when to look again
				changes = nil
			case !event.Deleted:
				return left
			}
		case <-timer.C:
			return left
		case <-ctx.Done():
			return left
		}
	}
}

// releaseAll tries all that there is at a revision; left says that not all could be
// released.
func (b *Book) releaseAll(ctx context.Context) (revision int64, left bool) {
	entries, revision, err := b.releases.All(ctx)
	if err != nil {
		b.Log.Warn("not known which leases are to be released", "error", err)
		return revision, true
	}
	away := map[fleet.VolumeServerName]bool{}
	for _, entry := range entries {
		if err := b.release(ctx, entry, away); err != nil {
			left = true
			b.Log.Warn("leases are not released yet", "vm", entry.Value.VM, "epoch", entry.Value.Epoch, "error", err)
		}
	}
	return revision, left
}

// release ends one, and forgets it when that is done. away are volume servers that
// did not answer: none is asked again in the same turn.
func (b *Book) release(ctx context.Context, entry store.Entry[release], away map[fleet.VolumeServerName]bool) error {
	one, hash := entry.Value, ""
	if one.Only != nil {
		hash = hashOf(b.Key(one.UID, one.Epoch, *one.Only))
	}
	for _, of := range one.Volumes {
		if away[of.Server] {
			return &fleet.Error{Code: fleet.Unavailable, Op: "release", Subject: "volume server " + string(of.Server), Cause: "it did not answer before"}
		}
		err := b.ask(ctx, of.Server, func(ctx context.Context, server fleet.VolumeServer, client VolumeServer) error {
			for _, volume := range of.Volumes {
				_, err := client.Release(ctx, &godwitv1.ReleaseLeaseRequest{Volume: string(volume), Epoch: uint64(one.Epoch), KeyHash: hash})
				if err != nil && fleet.CodeOf(err) != fleet.NotFound { // a volume that was deleted has no lease
					return failed("release volume "+string(volume), server, err)
				}
			}
			return nil
		})
		if err != nil {
			away[of.Server] = true
			return err
		}
	}
	_, err := b.Store.Commit(ctx, store.If(b.releases.At(entry.Name, entry.Version)), b.releases.Delete(entry.Name))
	if fleet.CodeOf(err) == fleet.Conflict { // stored anew, and released in the next turn
		return nil
	}
	return err
}
