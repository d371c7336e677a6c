package imagelock

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func image(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func show(t *testing.T, path string) *Shown {
	t.Helper()
	shown, err := Show(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shown.Close() })
	return shown
}

func checkSees(t *testing.T, path string, at int64, want bool) {
	t.Helper()
	if sees, err := Sees(path, at); err != nil || sees != want {
		t.Errorf("byte %d of %s is seen to be shown: %v, %v; want %v", at, path, sees, err, want)
	}
}

func TestShow(t *testing.T) {
	path := image(t, "disk")
	shown := show(t, path)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	checkSees(t, path, shown.Byte, true)
	checkSees(t, link, shown.Byte, true) // the file counts, not its path
	checkSees(t, path, shown.Byte+1, false)
	checkSees(t, image(t, "disk"), shown.Byte, false)
	second := show(t, path) // for another migration, at the same time
	checkSees(t, path, second.Byte, true)
	shown.Close()
	checkSees(t, path, shown.Byte, false)
	checkSees(t, path, second.Byte, true)
}

// A lock on the whole of another file, as some programs take it, is not mistaken
// for the one that is looked for.
func TestShowAmongOtherLocks(t *testing.T) {
	shown := show(t, image(t, "disk"))
	other := image(t, "disk")
	file, err := os.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	whole := unix.Flock_t{Type: unix.F_RDLCK}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		t.Fatal(err)
	}
	checkSees(t, other, shown.Byte, false)
}

func TestOpenIn(t *testing.T) {
	path := image(t, "disk")
	shown := show(t, path)
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	holder := exec.Command("cat")
	holder.ExtraFiles = []*os.File{file}
	end, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		end.Close()
		if err := holder.Wait(); err != nil {
			t.Error(err)
		}
	}()
	if open, err := shown.OpenIn(holder.Process.Pid); err != nil || !open {
		t.Errorf("a file that a process has open is not found: %v", err)
	}
	if err := os.Rename(image(t, "new"), path); err != nil {
		t.Fatal(err)
	}
	if open, err := show(t, path).OpenIn(holder.Process.Pid); err != nil || open {
		t.Errorf("a file that took the path of another is found in its place: %v", err)
	}
}

func TestTaken(t *testing.T) {
	path := image(t, "disk")
	show(t, path) // is no QEMU's
	if taken, err := Taken(path, os.Getppid()); err != nil || taken {
		t.Errorf("an image that nobody has is taken: %v, %v", taken, err)
	}
	for _, at := range []int64{101, 201} {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Fatal(err)
		}
		if taken, err := Taken(path, os.Getppid()); err != nil || !taken {
			t.Errorf("an image with a lock on byte %d is not taken: %v", at, err)
		}
		if taken, err := Taken(path, os.Getpid()); err != nil || taken {
			t.Errorf("an image that the QEMU has itself is taken by another: %v", err)
		}
		file.Close()
	}
}
