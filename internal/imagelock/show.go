package imagelock

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// The byte by which a file is shown: by chance no two are the same, and no program
// locks it that does not lock the whole file.
const (
	firstByte = 1 << 40
	lastByte  = 1 << 62
)

// Shown is a file that this process shows to another host. The lock lasts until
// Close.
type Shown struct {
	Byte int64 // that is locked
	file *os.File
}

// Show locks a byte of the file at a path.
func Show(path string) (*Shown, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	shown := &Shown{Byte: firstByte + rand.Int64N(lastByte-firstByte), file: file}
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: shown.Byte, Len: 1}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return shown, nil
}

// Close ends the lock.
func (s *Shown) Close() error { return s.file.Close() }

// OpenIn tells whether a process has that very file open: its path may be another
// one's by now.
func (s *Shown) OpenIn(pid int) (bool, error) {
	own, err := s.file.Stat()
	if err != nil {
		return false, err
	}
	open := false
	err = eachOpen(pid, own, func(string) error {
		open = true
		return nil
	})
	return open, err
}

// Sees tells whether the file at a path is locked by another at exactly this byte:
// if that is shown, it is the file that is shown, and its locks are seen here.
func Sees(path string, at int64) (bool, error) {
	lock, err := conflict(path, at, 1)
	return lock.Type == unix.F_RDLCK && lock.Start == at && lock.Len == 1, err
}

// conflict gives a lock of another on a part of a file, with type F_UNLCK if there
// is none.
func conflict(path string, start, length int64) (unix.Flock_t, error) {
	file, err := os.Open(path)
	if err != nil {
		return unix.Flock_t{}, err
	}
	defer file.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: start, Len: length}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return unix.Flock_t{}, fmt.Errorf("look for locks of %s: %w", path, err)
	}
	return lock, nil
}

// Size gives the bytes of a file or block device.
func Size(path string) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return file.Seek(0, io.SeekEnd)
}

// IsDevice tells whether a path is a block device.
func IsDevice(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().Type() == os.ModeDevice
}
