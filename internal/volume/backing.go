package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// zeroStep is what is zeroed or discarded at once: the lock of the lease is
// held that long, and a change of the lease waits for it.
const zeroStep = 64 << 20 // bytes

var pageSize = int64(os.Getpagesize())

// zeroes is what is written where the file system knows no faster way.
var zeroes [1 << 20]byte

// backing is the file or block device that holds a volume's bytes. All
// connections share it and the kernel's cache of it, so that a flush by one
// covers what any has been told is written.
type backing struct {
	file   *os.File
	fd     int
	device bool

	sync     func() error // fdatasync
	asked    atomic.Int64 // how many flushes have been asked for
	flushing sync.Mutex
	covered  int64 // by the last flush, of those that were asked for
	// failed is set when a flush has failed. The kernel then drops what it
	// could not write and reports it once, so that no later flush may succeed.
	failed bool
}

// openBacking opens and locks a file or block device.
func openBacking(path string) (*backing, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	flags, device := os.O_RDWR, info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
	switch {
	case device:
		flags |= unix.O_EXCL // nobody mounts it meanwhile, or has
	case !info.Mode().IsRegular():
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "open", Subject: path, Cause: "it is neither a file nor a block device"}
	}
	file, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, inUse(path, err)
	}
	if err != nil {
		return nil, err
	}
	if err := lockWhole(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	fd := int(file.Fd())
	return &backing{file: file, fd: fd, device: device, sync: func() error { return unix.Fdatasync(fd) }}, nil
}

// lockWhole takes a lock on every byte. QEMU's programs lock single bytes of
// an image (locking=auto), so that they and this keep each other out. It ends
// with the process, however that ends.
func lockWhole(file *os.File) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return inUse(file.Name(), err)
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	return nil
}

func inUse(path string, err error) error {
	return &fleet.Error{
		Code: fleet.Conflict, Op: "lock", Subject: path, Cause: "another process uses it",
		Hint: "end that one first; lsof " + path + " names it", Err: err,
	}
}

func (b *backing) close() error { return b.file.Close() }

// size is that of the file or device now.
func (b *backing) size() (fleet.Bytes, error) {
	end, err := b.file.Seek(0, io.SeekEnd)
	return fleet.Bytes(end), err
}

// allocated is how much of the disk it takes.
func (b *backing) allocated() (fleet.Bytes, error) {
	var stat unix.Stat_t
	if b.device {
		return b.size()
	}
	err := unix.Fstat(b.fd, &stat)
	return fleet.Bytes(stat.Blocks) * 512, err
}

// grow makes a file larger, durably.
func (b *backing) grow(size fleet.Bytes) error {
	if err := b.file.Truncate(int64(size)); err != nil {
		return err
	}
	return b.flush()
}

func (b *backing) readAt(p []byte, offset int64) error {
	_, err := b.file.ReadAt(p, offset)
	return err
}

// readCached reads what is in the kernel's cache already, without waiting for
// the disk; false when anything is missing.
func (b *backing) readCached(p []byte, offset int64) bool {
	n, err := unix.Preadv2(b.fd, [][]byte{p}, offset, unix.RWF_NOWAIT)
	return err == nil && n == len(p)
}

// cached tells whether the whole range is in the kernel's cache, as far as the
// kernel can tell.
func (b *backing) cached(offset, length int64) bool {
	pages := (offset+length-1)/pageSize - offset/pageSize + 1
	var found unix.Cachestat_t
	err := unix.Cachestat(uint(b.fd), &unix.CachestatRange{Off: uint64(offset), Len: uint64(length)}, &found, 0)
	return err == nil && found.Cache >= uint64(pages)
}

func (b *backing) writeAt(p []byte, offset int64) error {
	_, err := b.file.WriteAt(p, offset)
	return err
}

// flush returns when all that was written before is on the disk. One fdatasync
// runs at a time: of two the kernel would tell only one that it has failed. All
// who ask meanwhile share the next one.
func (b *backing) flush() error {
	asked := b.asked.Add(1)
	b.flushing.Lock()
	defer b.flushing.Unlock()
	switch {
	case b.failed:
		return unix.EIO
	case b.covered >= asked:
		return nil
	}
	covered := b.asked.Load()
	if err := again(b.sync); err != nil {
		b.failed = true
		return err
	}
	b.covered = covered
	return nil
}

// trim gives the range's blocks back, as far as that is possible.
func (b *backing) trim(offset, length int64) error {
	err := b.allocate(unix.FALLOC_FL_PUNCH_HOLE, offset, length)
	if unsupported(err) {
		return nil // it is a hint
	}
	return err
}

// zero makes the range read as zeroes. With hole its blocks may be given back;
// with fast it fails with ENOTSUP where that would mean writing the zeroes.
func (b *backing) zero(offset, length int64, hole, fast bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	if hole {
		mode = unix.FALLOC_FL_PUNCH_HOLE
	}
	err := b.allocate(mode, offset, length)
	switch {
	case !unsupported(err):
		return err
	case fast:
		return unix.ENOTSUP
	}
	for length > 0 {
		n := min(length, int64(len(zeroes)))
		if err := b.writeAt(zeroes[:n], offset); err != nil {
			return err
		}
		offset, length = offset+n, length-n
	}
	return nil
}

func (b *backing) allocate(mode uint32, offset, length int64) error {
	return again(func() error { return unix.Fallocate(b.fd, mode|unix.FALLOC_FL_KEEP_SIZE, offset, length) })
}

// unsupported tells that a file system lacks a way of fallocate, or a device
// demands whole blocks for it.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

// readAhead asks the kernel to have the range in its cache soon.
func (b *backing) readAhead(offset, length int64) error {
	return again(func() error { return unix.Fadvise(b.fd, offset, length, unix.FADV_WILLNEED) })
}

// extent is a part of the volume that is all data or all hole.
type extent struct {
	length int64
	hole   bool
}

// extents gives at least one extent from offset on, at most limit of them, and
// none beyond the length.
func (b *backing) extents(offset, length int64, limit int) ([]extent, error) {
	var found []extent
	for end := offset + length; offset < end && len(found) < limit; {
		next, hole, err := b.nextChange(offset, end)
		if err != nil {
			return nil, err
		}
		found = append(found, extent{next - offset, hole})
		offset = next
	}
	return found, nil
}

// nextChange tells whether there is a hole at offset, and where it or the data
// ends.
func (b *backing) nextChange(offset, end int64) (next int64, hole bool, err error) {
	data, err := unix.Seek(b.fd, offset, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no data up to the end of the file
		return end, true, nil
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP):
		return end, false, nil // it can't tell, as devices can't
	case err != nil:
		return 0, false, err
	case data > offset:
		return min(data, end), true, nil
	}
	next, err = unix.Seek(b.fd, offset, unix.SEEK_HOLE)
	if err != nil {
		return 0, false, err
	}
	// Where something is written or discarded at the same time, the hole may be
	// at the offset by now.
	return min(max(next, offset+1), end), false, nil
}

// again repeats a call that a signal has interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
