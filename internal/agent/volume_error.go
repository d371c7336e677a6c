package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/qemu"
)

// The pauses before a guest goes on that a disk's error has stopped double from the
// first to the longest, which follows if it was stopped again at once.
const (
	goOnAfterMin = time.Second
	goOnAfterMax = 10 * time.Second
)

// volumeAway gives the cause of a start that has failed: for a volume server that does
// not answer QEMU says what it was told of the disk, and how the connection failed.
func volumeAway(spec fleet.VMSpec, config qemu.Config, failed error) error {
	for i, disk := range config.Disks {
		if disk.Volume == nil {
			continue
		}
		_, said, _ := strings.Cut(failed.Error(), fmt.Sprintf(`"export":%q`, disk.Volume.Export))
		_, said, _ = strings.Cut(said, "}: ")
		said, _, _ = strings.Cut(said, "; ") // the next line
		if strings.Contains(strings.ToLower(said), "connect") {
			return &fleet.Error{
				Code: fleet.Unavailable, Op: "open", Subject: "disk " + disk.Name,
				Cause: fmt.Sprintf("volume server %s does not answer: %s", spec.Disks[i].Server, said),
				Hint:  "see that godwit volume serve runs there",
			}
		}
	}
	return failed
}

// outliveErrors lets the guest of a machine with volumes go on after an error of a
// disk has stopped it: QEMU then does again what has failed. A volume server that is
// back has all that it has acknowledged.
func (m *machine) outliveErrors(ctx context.Context, instance *qemu.Instance) {
	m.mu.Lock()
	done := m.record.Volumes == nil || m.outlives == instance
	if !done {
		m.outlives = instance
	}
	m.mu.Unlock()
	if done {
		return
	}
	events := instance.Subscribe()
	defer events.Close()
	timer := time.NewTimer(0) // by an earlier agent nobody may have looked
	defer timer.Stop()
	pause, went := goOnAfterMin, time.Time{}
	for {
		select {
		case event, open := <-events.Events():
			if !open {
				return
			}
			if event.Kind != qemu.DiskError {
				continue
			}
			if pause = min(2*pause, goOnAfterMax); time.Since(went) > 2*goOnAfterMax {
				pause = goOnAfterMin
				m.agent.log.Warn("a disk's error has stopped a guest", "vm", m.key.vm, "epoch", m.key.epoch, "error", event.Reason)
			}
			went = time.Now()
			timer.Reset(pause)
		case <-timer.C:
			if err := m.inTurn(ctx, func() error { return m.goOnFailing(ctx, instance) }); err != nil && ctx.Err() == nil {
				m.agent.log.Warn("a guest that a disk's error has stopped does not go on", "vm", m.key.vm, "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// goOnFailing, of the worker, lets a guest that a disk's error has stopped go on, if
// its instance is the one that is to run.
func (m *machine) goOnFailing(ctx context.Context, instance *qemu.Instance) error {
	switch m.record.Role {
	case pledge.Alone, pledge.Arrived, pledge.RanOn:
	default:
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, runWithin)
	defer cancel()
	state, err := instance.Status(ctx)
	if err != nil || !state.Failing() || m.isEnding() {
		return err
	}
	_, err = instance.Resume(ctx)
	return err
}
