package pagesample

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// Memory is a range of the memory of another process.
type Memory struct {
	pid     int
	base    uint64 // address in the process
	pages   uint64
	pidfd   int
	pagemap *os.File
}

// pageSize is that of this host, in bytes.
var pageSize = os.Getpagesize()

// Open prepares to look at size bytes from an address of a process on. Unsupported if
// this program may not, or if that is no private anonymous memory from end to end.
// Whoever knows the process by more than its number must see after this that it has not
// ended: another one that is given the number later is never read.
func Open(pid int, base, size uint64) (*Memory, error) {
	page := uint64(pageSize)
	if size == 0 || base%page != 0 || size%page != 0 || base+size < base {
		return nil, refused(pid, fmt.Sprintf("%#x and %d bytes are no whole pages", base, size), nil)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, refused(pid, "it can't be held", err)
	}
	m := &Memory{pid: pid, base: base, pages: size / page, pidfd: pidfd}
	if err := m.open(); err != nil {
		return nil, errors.Join(err, unix.Close(pidfd))
	}
	return m, nil
}

// open looks only after the pidfd is there: all three are then of one process.
func (m *Memory) open() (err error) {
	dir := filepath.Join("/proc", strconv.Itoa(m.pid))
	maps, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return refused(m.pid, "its mappings can't be read", err)
	}
	defer maps.Close()
	if err := covered(bufio.NewScanner(maps), m.base, m.base+m.pages*uint64(pageSize)); err != nil {
		return refused(m.pid, err.Error(), nil)
	}
	if m.pagemap, err = os.Open(filepath.Join(dir, "pagemap")); err != nil {
		return refused(m.pid, "which pages are present can't be read", err)
	}
	if !m.lives() {
		return errors.Join(ended(m.pid), m.pagemap.Close())
	}
	return nil
}

// Close lets go of the process.
func (m *Memory) Close() error {
	return errors.Join(m.pagemap.Close(), unix.Close(m.pidfd))
}

// covered tells whether private anonymous memory that can be written lies from one
// address to another without a gap, in one mapping or several (proc_pid_maps(5)).
func covered(maps *bufio.Scanner, from, to uint64) error {
	for next := from; maps.Scan(); {
		var start, end, inode uint64
		var rights, offset, device string
		if _, err := fmt.Sscanf(maps.Text(), "%x-%x %s %s %s %d", &start, &end, &rights, &offset, &device, &inode); err != nil {
			return fmt.Errorf("its mapping %q can't be read: %w", maps.Text(), err)
		}
		if end <= next {
			continue
		}
		if start > next {
			return fmt.Errorf("nothing is mapped at %#x", next)
		}
		if !strings.HasPrefix(rights, "rw") || !strings.HasSuffix(rights, "p") || inode != 0 {
			return fmt.Errorf("what is mapped at %#x is no private anonymous memory", next)
		}
		if next = end; next >= to {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("not all of %#x to %#x is mapped", from, to), maps.Err())
}

// lives is true if the process had not ended when it was called.
func (m *Memory) lives() bool {
	events := []unix.PollFd{{Fd: int32(m.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(events, 0)
		if !errors.Is(err, unix.EINTR) {
			return n == 0 && err == nil
		}
	}
}

// Bits of an entry of the pagemap (linux, admin-guide/mm/pagemap.rst).
const (
	pagemapPresent = 1 << 63
	pagemapSwapped = 1 << 62
)

// presence says where a page is.
type presence int

const (
	absent presence = iota + 1 // nowhere: it is zero
	swapped
	present
)

func (m *Memory) presence(page uint64) (presence, error) {
	var entry [8]byte
	if _, err := m.pagemap.ReadAt(entry[:], int64(m.base/uint64(pageSize)+page)*8); err != nil {
		return 0, m.failed("see which pages are present", err)
	}
	switch bits := binary.NativeEndian.Uint64(entry[:]); {
	case bits&pagemapPresent != 0:
		return present, nil
	case bits&pagemapSwapped != 0:
		return swapped, nil
	}
	return absent, nil
}

// read fills the buffer with pages, one after the other; at most maxBatch.
func (m *Memory) read(pages []uint64, buffer []byte) error {
	remote := make([]unix.RemoteIovec, len(pages))
	for i, page := range pages {
		remote[i] = unix.RemoteIovec{Base: uintptr(m.base + page*uint64(pageSize)), Len: pageSize}
	}
	local := []unix.Iovec{{Base: &buffer[0]}}
	local[0].SetLen(len(pages) * pageSize)
	n, err := unix.ProcessVMReadv(m.pid, local, remote, 0)
	if err == nil && n != len(pages)*pageSize {
		err = fmt.Errorf("%d bytes of %d were read", n, len(pages)*pageSize)
	}
	if err != nil {
		return m.failed("read", err)
	}
	if !m.lives() { // else the number was its own
		return ended(m.pid)
	}
	return nil
}

func (m *Memory) failed(what string, err error) error {
	switch {
	case !m.lives(), errors.Is(err, unix.ESRCH), errors.Is(err, io.EOF): // its memory goes before it does
		return ended(m.pid)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOSYS):
		return refused(m.pid, what, err)
	}
	return &fleet.Error{Code: fleet.Failed, Op: "sample memory", Subject: subject(m.pid), Cause: what, Err: err}
}

func subject(pid int) string { return "process " + strconv.Itoa(pid) }

func ended(pid int) error {
	return &fleet.Error{Code: fleet.Conflict, Op: "sample memory", Subject: subject(pid), Cause: "it has ended"}
}

func refused(pid int, cause string, err error) error {
	return &fleet.Error{Code: fleet.Unsupported, Op: "sample memory", Subject: subject(pid), Cause: cause, Err: err,
		Hint: "reading another process's memory needs CAP_SYS_PTRACE, and that no security module forbids it"}
}
