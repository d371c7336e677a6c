package imagelock

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// QEMU locks a byte from 100 on for each thing that it does with an image, and one
// from 200 on for each that it lets nobody else do.
const (
	firstQEMUByte = 100
	qemuBytes     = 164
)

// Taken tells whether another than the QEMU with that process has locked the image at a
// path, so that it can't write it. What that QEMU has itself, no other has.
func Taken(path string, own int) (bool, error) {
	lock, err := conflict(path, firstQEMUByte, qemuBytes)
	if err != nil || lock.Type == unix.F_UNLCK {
		return false, err
	}
	file, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	locked := false
	err = eachOpen(own, file, func(number string) error {
		info, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(own), "fdinfo", number))
		locked = locked || bytes.Contains(info, []byte("OFDLCK"))
		return err
	})
	return !locked, err
}

// eachOpen calls f with the number of each descriptor that a process has of a file.
func eachOpen(pid int, file os.FileInfo, f func(number string) error) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := os.Stat(filepath.Join(dir, entry.Name()))
		if err == nil && os.SameFile(file, info) {
			err = f(entry.Name())
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // else it was closed meanwhile
			return err
		}
	}
	return nil
}
