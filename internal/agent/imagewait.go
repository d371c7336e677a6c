package agent

import (
	"context"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/imagelock"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/qemu"
)

// What fences an image is QEMU's lock on it, and nothing else. A target that gets the
// right to run, and whose image is locked by another, does not run; the server has it
// try again. It never ran, so that its source may have the VM back, if it asks.

// images are the disks whose images the instance writes, as others might.
func (m *machine) images() (list []qemu.Disk) {
	for _, disk := range m.instance.Config().Disks {
		if disk.Volume == nil && !disk.Local && !disk.ReadOnly {
			list = append(list, disk)
		}
	}
	return list
}

// looksForLocks tells whether locks are looked for before anything is done with the
// right to run: where a try would use a right that can't be given back, or lock some of
// several images, and where one has failed. Else QEMU's own try is the fastest.
func (m *machine) looksForLocks() bool {
	images := len(m.images())
	return images > 0 && (images > 1 || m.record.Volumes != nil || m.lockless)
}

// imageWait says that an image is locked by another, nil if none is.
func (m *machine) imageWait(ctx context.Context) *godwitv1.Report {
	type answer struct {
		disk qemu.Disk
		err  error
	}
	images, pid := m.images(), m.instance.PID()
	found, late := answering(ctx, func() answer {
		for _, disk := range images {
			if taken, err := imagelock.Taken(disk.Path, pid); taken || err != nil {
				return answer{disk, err}
			}
		}
		return answer{}
	})
	if late != nil {
		found.err = fmt.Errorf("look for locks of images: %w", late)
	}
	switch {
	case found.err != nil:
		return pledge.TargetFailed(found.err, false)
	case found.disk.Name == "":
		return nil
	}
	m.lockless = true
	report := pledge.TargetFailed(&fleet.Error{
		Code: fleet.Conflict, Op: "run", Subject: "vm " + string(m.key.vm),
		Cause: fmt.Sprintf("the image of disk %s, %s, is locked by another, as far as can be told by the instance on %s; the target waits for it",
			found.disk.Name, found.disk.Path, m.record.Peer.Host),
	}, false)
	report.GetTargetFailed().LockedDisk = found.disk.Name
	return report
}

// notResumed is what a target says that QEMU did not let run. If that is for want of a
// lock, no instruction was run, and the gate is closed again to what would come out.
func (m *machine) notResumed(ctx context.Context, cause error) *godwitv1.Report {
	failed := pledge.TargetFailed(cause, m.instance.Ended())
	state, err := m.instance.Status(ctx)
	if err != nil || !state.Waiting() {
		return failed
	}
	waits := m.imageWait(ctx)
	if waits.GetTargetFailed().GetLockedDisk() == "" {
		return failed
	}
	if err := m.setMode(network.Arriving); err != nil {
		m.agent.log.Error("the gate of a target that waits for a lock is open", "vm", m.key.vm, "error", err)
	}
	return waits
}
