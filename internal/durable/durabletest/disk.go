// Package durabletest has a disk whose power can be cut.
package durabletest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a file system of its own. What was not synced is lost with its power.
type Disk struct {
	Dir string // where it is mounted

	t     testing.TB
	image string
}

const (
	diskSize = 16 << 20
	// neverCommit has the file system sync nothing by itself while a test
	// runs: every 300 seconds, the longest that there is.
	neverCommit = "loop,commit=300"

	// From Linux's fs/ext4/ext4.h: no more reads or writes, and what is in the
	// journal's memory only is dropped.
	ioctlShutdown     = 0x8004587d
	shutdownUnflushed = 2
)

// NewDisk makes a disk, which goes with the test. It skips the test where that
// is impossible.
func NewDisk(t testing.TB) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a disk of its own needs root: it is mounted")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("there is no mkfs.ext4; Debian has it in e2fsprogs")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("this machine has no loop devices")
	}
	d := &Disk{t: t, Dir: t.TempDir(), image: filepath.Join(t.TempDir(), "disk")}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, diskSize); err != nil {
		t.Fatal(err)
	}
	d.run(mkfs, "-q", "-F", d.image)
	d.mount()
	t.Cleanup(func() {
		if err := unix.Unmount(d.Dir, 0); err != nil {
			t.Errorf("unmount %s: %v", d.Dir, err)
		}
	})
	return d
}

// CutPower cuts the power and gives it back: what is in Dir then is what the
// disk has. No file there may be open.
func (d *Disk) CutPower() {
	d.t.Helper()
	root, err := os.Open(d.Dir)
	if err != nil {
		d.t.Fatal(err)
	}
	err = unix.IoctlSetPointerInt(int(root.Fd()), ioctlShutdown, shutdownUnflushed)
	if err != nil {
		d.t.Fatalf("cut the power of %s: %v", d.Dir, err)
	}
	if err := root.Close(); err != nil {
		d.t.Fatal(err)
	}
	if err := unix.Unmount(d.Dir, 0); err != nil {
		d.t.Fatalf("unmount %s: %v", d.Dir, err)
	}
	d.mount()
}

func (d *Disk) mount() {
	d.t.Helper()
	d.run("mount", "-t", "ext4", "-o", neverCommit, d.image, d.Dir)
}

func (d *Disk) run(name string, args ...string) {
	d.t.Helper()
	if text, err := exec.CommandContext(d.t.Context(), name, args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s %v: %v: %s", name, args, err, text)
	}
}
