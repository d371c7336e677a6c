package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// TapFDs takes duplicates of the descriptors that QEMU has of the tap with the
// interface name, one per queue, in the order of the queues' descriptors in
// QEMU. The caller closes them. They share QEMU's file descriptions: frames
// read here do not reach the guest, and O_NONBLOCK must stay set.
// NotFound when QEMU has none.
func (i *Instance) TapFDs(name string) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			fds = nil
		}
	}()
	// Passed descriptors are the first that QEMU has, in the order of the
	// configuration; where they end only /proc tells.
	entries, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", i.process.pid))
	if err != nil {
		return nil, err
	}
	highest := -1
	for _, entry := range entries {
		if target, err := os.Readlink(entry); err == nil && target == "/dev/net/tun" {
			number, _ := strconv.Atoi(filepath.Base(entry))
			highest = max(highest, number)
		}
	}
	for number := firstFD; number <= highest; number++ {
		fd, err := i.tapFD(number, name)
		if err != nil {
			return fds, &fleet.Error{Code: fleet.Failed, Op: "take tap from QEMU", Subject: name, Cause: "its descriptor cannot be had", Err: err}
		}
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	if len(fds) == 0 {
		return nil, &fleet.Error{Code: fleet.NotFound, Op: "take tap from QEMU", Subject: name, Cause: "QEMU does not have it open"}
	}
	return fds, nil
}

// tapFD duplicates QEMU's descriptor if it is a queue of that tap, else gives -1.
func (i *Instance) tapFD(number int, name string) (fd int, err error) {
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", i.process.pid, number))
	if err != nil || target != "/dev/net/tun" {
		return -1, nil
	}
	err = i.process.control(func(pidfd int) (err error) {
		fd, err = unix.PidfdGetfd(pidfd, number, 0)
		return err
	})
	if err != nil {
		return -1, os.NewSyscallError("pidfd_getfd", err)
	}
	request, err := unix.NewIfreq("x") // overwritten by the kernel
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("TUNGETIFF", err)
	}
	if request.Name() != name {
		return -1, unix.Close(fd)
	}
	return fd, nil
}
