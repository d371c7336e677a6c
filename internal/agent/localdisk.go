package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/localdisk"
	"godwit.dev/godwit/internal/qemu"
)

// DefaultKeepDisks is for how long a source keeps the local disks of a VM that has
// moved.
const DefaultKeepDisks = time.Hour

// lookAtDisksEvery bounds the sleep of who removes old copies: the clock may be set.
const lookAtDisksEvery = time.Minute

// endExportsWithin bounds the taking back of a target's disks.
const endExportsWithin = 5 * time.Second

// openDisks gives the machine the copy of its VM's local disks: a target an empty one,
// to be filled, any other the one that the VM's record speaks of, or the first.
func (m *machine) openDisks(ctx context.Context, spec fleet.VMSpec, from fleet.Epoch, incoming bool) error {
	disks := spec.LocalDisks()
	if len(disks) == 0 {
		return nil
	}
	store := m.agent.disks
	create := func(path, format string, size fleet.Bytes) error {
		return qemu.CreateImage(ctx, m.agent.config.QEMU, m.dir, path, format, size)
	}
	fresh := localdisk.Copy{VM: m.key.vm, UID: m.uid, Epoch: m.key.epoch, State: localdisk.Filling}
	var one localdisk.Copy
	var err error
	if incoming {
		one, err = store.Make(fresh, disks, create)
	} else if one, err = store.Use(m.key.vm, m.uid, m.key.epoch, from); fleet.CodeOf(err) == fleet.NotFound {
		fresh.State = localdisk.Good
		one, err = store.Make(fresh, disks, create)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record.Disks = one.Dir
	return err
}

// localDisk gives a disk's image in the machine's copy.
func (m *machine) localDisk(disk fleet.Disk) string {
	return localdisk.Copy{Dir: m.record.Disks}.Path(disk)
}

// hasLocal tells whether the instance has local disks.
func hasLocal(instance *qemu.Instance) bool {
	for _, disk := range instance.Config().Disks {
		if disk.Local {
			return true
		}
	}
	return false
}

// export lets the source write to the target's disks, and gives the port; 0 without.
func (m *machine) export(ctx context.Context, want *godwitv1.PrepareTarget) (uint16, error) {
	if !hasLocal(m.instance) {
		return 0, nil
	}
	in, err := m.incoming(want)
	if err != nil {
		return 0, err
	}
	return m.instance.Export(ctx, in)
}

// endExports takes the disks of a target back that has loaded everything, so that it
// can run: the source has written all by then. It may be called again.
func (m *machine) endExports(ctx context.Context, instance *qemu.Instance) error {
	if !hasLocal(instance) {
		return nil
	}
	m.exports.Lock()
	defer m.exports.Unlock()
	if m.exportsEnded {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, endExportsWithin)
	defer cancel()
	err := instance.EndExports(ctx)
	m.exportsEnded = err == nil
	return err
}

// stopExporting closes the port at which the target has taken its disks.
func (m *machine) stopExporting() error {
	if m.instance == nil || m.instance.Ended() || !hasLocal(m.instance) {
		return nil
	}
	ctx, cancel := context.WithTimeout(m.life, endExportsWithin)
	defer cancel()
	return m.instance.StopExporting(ctx)
}

// olderDisksGo removes what else the host has of the VM's local disks.
func (m *machine) olderDisksGo() error { return m.markDisks(m.agent.disks.RemoveOlder) }

// disksRan marks the copy of a target that runs as the good one.
func (m *machine) disksRan() error {
	return m.markDisks(func(one localdisk.Copy) error {
		one.Epoch = m.key.epoch
		return m.agent.disks.Ran(one)
	})
}

// disksOld marks the copy of a source whose VM runs elsewhere. ran says that this is
// known: then it is removed after a time.
func (m *machine) disksOld(ran bool) error {
	defer m.agent.lookAtDisks()
	return m.markDisks(func(one localdisk.Copy) error {
		if one.State == localdisk.Old && !ran {
			return nil
		}
		if one.State = localdisk.Old; ran && one.RemoveAt.IsZero() {
			one.RemoveAt = time.Now().Add(m.agent.config.KeepDisks)
		}
		return m.agent.disks.Mark(one)
	})
}

// markDisks changes the mark of the machine's copy, if it has one that is still there.
func (m *machine) markDisks(change func(localdisk.Copy) error) error {
	if m.record.Disks == "" {
		return nil
	}
	one, err := m.agent.disks.In(m.record.Disks)
	if errors.Is(err, localdisk.ErrNone) {
		return nil
	}
	if err == nil {
		err = change(one)
	}
	return err
}

// dropDisks removes the copy of a target that never ran.
func (m *machine) dropDisks(neverRan bool) error {
	if !neverRan {
		return nil
	}
	return m.markDisks(func(one localdisk.Copy) error {
		if one.State != localdisk.Filling {
			return nil
		}
		return m.agent.disks.Remove(one)
	})
}

// lookAtDisks has old copies looked at.
func (a *Agent) lookAtDisks() {
	select {
	case a.disksMarked <- struct{}{}:
	default:
	}
}

// keepDisks removes copies that are old for long enough, until ctx ends.
func (a *Agent) keepDisks(ctx context.Context) {
	for ctx.Err() == nil {
		next, err := a.disks.RemoveDue(time.Now())
		if err != nil {
			a.log.Error("old local disks were not all removed", "error", err)
		}
		pause := lookAtDisksEvery
		if !next.IsZero() {
			pause = min(pause, max(time.Until(next), time.Second))
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-a.disksMarked:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// removeDisks removes all copies of a VM that was deleted, unless it has an instance
// here, which the servers end first.
func (a *Agent) removeDisks(command *godwitv1.Command) {
	want := command.GetRemoveDisks()
	uid := fleet.InstanceUID(want.GetUid())
	if err := a.removeDisksOf(uid); err != nil {
		a.log.Error("local disks were not removed", "vm", want.GetVm(), "uid", uid, "error", err)
		return // the server asks again
	}
	a.say(&godwitv1.Report{
		Subject: command.GetSubject(), Sequence: command.GetSequence(),
		Event: &godwitv1.Report_DisksRemoved{DisksRemoved: &godwitv1.DisksRemoved{Uid: want.GetUid()}},
	})
}

func (a *Agent) removeDisksOf(uid fleet.InstanceUID) error {
	for _, m := range a.all() {
		m.mu.Lock()
		used := m.uid == uid && !m.hasEnded() || m.uid == ""
		m.mu.Unlock()
		if used {
			return fmt.Errorf("an instance at epoch %d may use them", m.key.epoch)
		}
	}
	copies, err := a.disks.Of(uid)
	for _, one := range copies {
		err = errors.Join(err, a.disks.Remove(one))
	}
	return err
}

// disksDir is where an agent keeps local disks that is not told another place.
func (c Config) disksDir() string {
	if c.DisksDir != "" {
		return c.DisksDir
	}
	return filepath.Join(c.Dir, "disks")
}
