package qemu_test

import (
	"bytes"
	"syscall"
	"testing"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

// tellsOfSteps: mirrors that are in step are left alone by the end of the copy.
func tellsOfSteps(i *qemu.Instance) bool {
	return i.Abilities().Schema.HasCommand("block-job-change")
}

// stopInStep stops the guest, whose disks the target has in full then.
func (m *moving) stopInStep(t *testing.T) {
	t.Helper()
	finished, err := m.source.StopMirrored(within(t))
	if err != nil {
		t.Fatal(err)
	}
	status(t, m.source, "paused")
	if err := finished(within(t)); err != nil {
		t.Fatal(err)
	}
}

// sendStopped sends a guest that has stopped, to the point at which the target has all.
func (m *moving) sendStopped(t *testing.T) {
	t.Helper()
	m.preSwitchover(t)
	fromSource, fromTarget := subscribe(t, m.source), subscribe(t, m.target)
	if err := m.source.ContinueSwitch(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, fromTarget, changed(qemu.StatusCompleted))
	await(t, fromSource, changed(qemu.StatusCompleted))
}

func (m *moving) preSwitchover(t *testing.T) {
	t.Helper()
	events := subscribe(t, m.source)
	send(t, m.source, m.out)
	await(t, events, changed(qemu.StatusPreSwitchover))
}

// A source takes its guest back after any part of the hand-over, though its mirrors
// are still there, and what the guest writes then is in its own disk only.
func TestMirrorTakenBack(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		for name, reach := range map[string]func(*testing.T, *moving){
			"stopped":           func(*testing.T, *moving) {},
			"in pre-switchover": func(t *testing.T, m *moving) { m.preSwitchover(t) },
			"all sent":          func(t *testing.T, m *moving) { m.sendStopped(t) },
			"the target's disks taken back": func(t *testing.T, m *moving) {
				m.sendStopped(t)
				if err := m.target.EndExports(within(t)); err != nil {
					t.Fatal(err)
				}
			},
			"the target lost": func(t *testing.T, m *moving) {
				m.sendStopped(t)
				kill(t, m.target)
			},
			"the target lost in pre-switchover": func(t *testing.T, m *moving) {
				m.preSwitchover(t)
				kill(t, m.target)
				events := subscribe(t, m.source)
				_ = m.source.ContinueSwitch(within(t)) // which may fail at once
				await(t, events, changed(qemu.StatusFailed))
			},
			"the target hung": func(t *testing.T, m *moving) {
				m.preSwitchover(t)
				signal(t, m.target, syscall.SIGSTOP)
				events := subscribe(t, m.source)
				if err := m.source.ContinueSwitch(within(t)); err != nil {
					t.Fatal(err)
				}
				await(t, events, changed(qemu.StatusDevice))
			},
		} {
			for _, format := range []string{"raw", "qcow2"} {
				t.Run(name+", "+format, func(t *testing.T) {
					m := startMoving(t, binary, format)
					resume(t, m.source)
					guestIO(t, m.source, 0, "write -P 17 0 16M")
					m.mirror(t)
					m.stopInStep(t)
					reach(t, m)
					m.source.CutMirrors(within(t))
					if err := m.source.CancelMigration(within(t)); err != nil {
						code(t, err, fleet.Conflict)
					}
					if err := m.source.AbandonMirrors(within(t)); err != nil {
						t.Fatal(err)
					}
					resume(t, m.source)
					guestIO(t, m.source, 0, "write -P 45 2M 4k")
					kill(t, m.target)
					if theirs := content(t, m.target.Config().Disks[0]); bytes.IndexByte(theirs, 45) >= 0 {
						t.Error("it is written to the target's disk")
					}
					m.goesOn(t, binary)
				})
			}
		}
	})
}

// What was written to the target and not flushed there is not given for copied: either
// the copy has failed, or the migration does.
func TestMirrorNotFlushed(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		m := startMoving(t, binary, "raw")
		resume(t, m.source)
		m.inStep(t)
		guestIO(t, m.source, 0, "write -P 17 0 1M")
		m.source.CutMirrors(within(t))
		finished, err := m.source.StopMirrored(within(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := finished(within(t)); err == nil {
			events := subscribe(t, m.source)
			send(t, m.source, m.out)
			await(t, events, changed(qemu.StatusFailed))
		} else if tellsOfSteps(m.source) {
			t.Errorf("finished: %v", err)
		}
		m.resumed(t, binary)
	})
}

// resumed is goesOn of a guest that was stopped.
func (m *moving) resumed(t *testing.T, binary string) {
	t.Helper()
	if err := m.source.AbandonMirrors(within(t)); err != nil {
		t.Fatal(err)
	}
	resume(t, m.source)
	m.goesOn(t, binary)
}
