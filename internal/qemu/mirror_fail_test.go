package qemu_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/qemu"
)

// goesOn demands that a guest's disk works as if nothing had been, and that its copy
// can begin anew.
func (m *moving) goesOn(t *testing.T, binary string) {
	t.Helper()
	if err := m.source.AbandonMirrors(within(t)); err != nil {
		t.Fatal(err)
	}
	if mirrors, err := m.source.Mirrors(within(t)); err != nil || len(mirrors) > 0 {
		t.Errorf("after the end: %+v, %v", mirrors, err)
	}
	status(t, m.source, "running")
	guestIO(t, m.source, 0, "write -P 44 1M 4k")
	guestIO(t, m.source, 0, "read -P 44 1M 4k")
	kill(t, m.target)
	m.retarget(t, local(t, binary, "raw"))
	m.to.BandwidthMax = 0
	m.begin(t)
	mirrored(t, m.source, func(one qemu.Mirror) bool { return one.Ready })
	if err := m.source.AbandonMirrors(within(t)); err != nil {
		t.Fatal(err)
	}
}

// The copy can be ended at any time, also when the target does not answer, or is
// gone, and the guest does not notice.
func TestMirrorAbandoned(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		for name, reach := range map[string]func(*testing.T, *moving){
			"never begun": func(*testing.T, *moving) {},
			"in the copy": func(t *testing.T, m *moving) {
				m.to.BandwidthMax = 1 << 20
				m.begin(t)
				if mirrors, err := m.source.Mirrors(within(t)); err != nil || len(mirrors) != 1 || mirrors[0].Ready || mirrors[0].Ended {
					t.Errorf("the mirrors are %+v, %v", mirrors, err)
				}
				if err := m.source.FinishMirrors(within(t)); err == nil {
					t.Error("it is finished before it is complete")
				}
			},
			"in step": func(t *testing.T, m *moving) { m.inStep(t) },
			"target hung from the beginning": func(t *testing.T, m *moving) {
				signal(t, m.target, syscall.SIGSTOP)
				began := time.Now()
				if err := m.source.StartMirrors(within(t), m.to); err == nil {
					t.Error("it is connected to")
				}
				if took := time.Since(began); took > patience/2 {
					t.Errorf("QEMU stood still for %v", took)
				} else {
					t.Logf("QEMU stood still for %v", took)
				}
				signal(t, m.target, syscall.SIGCONT)
			},
			"target hung": func(t *testing.T, m *moving) {
				m.inStep(t)
				signal(t, m.target, syscall.SIGSTOP)
				written := make(chan struct{})
				go func() { // which holds QEMU's monitor up
					defer close(written)
					guestIO(t, m.source, 0, "write -P 45 2M 4k")
				}()
				m.source.CutMirrors(within(t))
				<-written
				m.fails(t, "")
				signal(t, m.target, syscall.SIGCONT)
			},
			"target gone": func(t *testing.T, m *moving) {
				m.inStep(t)
				kill(t, m.target)
				guestIO(t, m.source, 0, "write -P 46 2M 4k")
				m.fails(t, "")
			},
		} {
			t.Run(name, func(t *testing.T) {
				m := startMoving(t, binary, "raw")
				resume(t, m.source)
				guestIO(t, m.source, 0, "write -P 17 0 16M")
				reach(t, m)
				m.goesOn(t, binary)
			})
		}
	})
}

// A target without room fails the copy, with the cause.
func TestMirrorTargetFull(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		m := startMoving(t, binary, "raw")
		full := t.TempDir()
		if err := unix.Mount("none", full, "tmpfs", 0, "size=8m"); err != nil {
			t.Skip("mount: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
		c := local(t, binary, "raw")
		c.Disks[0].Path = filepath.Join(full, "disk")
		if err := qemu.CreateImage(within(t), binary, c.Dir, c.Disks[0].Path, "raw", localSize); err != nil {
			t.Fatal(err)
		}
		m.retarget(t, c)
		resume(t, m.source)
		guestIO(t, m.source, 0, "write -P 17 0 16M")
		m.begin(t)
		m.fails(t, "No space left on device")
		m.goesOn(t, binary)
	})
}

// Only the source of the migration may write to the disks.
func TestMirrorOfAnother(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		m := startMoving(t, binary, "raw")
		m.to.CredsDir = m.ca.creds(t, "h3")
		if err := m.source.StartMirrors(within(t), m.to); err == nil {
			t.Error("another host's certificate is let in")
		}
		if err := m.source.AbandonMirrors(within(t)); err != nil {
			t.Error(err)
		}
		m.to.CredsDir = ""
		if err := m.source.StartMirrors(within(t), m.to); err == nil {
			t.Error("no certificate is let in")
		}
		if err := m.source.AbandonMirrors(within(t)); err != nil {
			t.Error(err)
		}
	})
}

// begin begins the copy.
func (m *moving) begin(t *testing.T) {
	t.Helper()
	if err := m.source.StartMirrors(within(t), m.to); err != nil {
		t.Fatal(err)
	}
}

// inStep brings the target's disks into step with the source's.
func (m *moving) inStep(t *testing.T) {
	t.Helper()
	m.begin(t)
	mirrored(t, m.source, func(one qemu.Mirror) bool { return one.Ready })
	if err := m.source.SyncMirrors(within(t)); err != nil {
		t.Fatal(err)
	}
	mirrored(t, m.source, func(one qemu.Mirror) bool { return one.Synced })
}

// fails waits for the end of the copy by an error that says something.
func (m *moving) fails(t *testing.T, says string) {
	t.Helper()
	for _, one := range mirrored(t, m.source, func(one qemu.Mirror) bool { return one.Ended }) {
		if one.Error == "" || !strings.Contains(one.Error, says) {
			t.Errorf("%+v does not say %q", one, says)
		}
	}
	if err := m.source.FinishMirrors(within(t)); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("finished: %v", err)
	}
}

func signal(t *testing.T, i *qemu.Instance, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(i.PID(), s); err != nil {
		t.Fatal(err)
	}
}
