package network

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// openQueue opens one queue of the tap called name. With create the tap must
// not exist yet, otherwise it must. The descriptor is non-blocking. Runs on a
// thread of the tap's namespace.
func openQueue(name string, multiQueue, create bool) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, &fleet.Error{Code: fleet.Unsupported, Op: "open tap", Subject: name,
			Cause: "this host has no /dev/net/tun", Hint: "load the kernel module tun"}
	}
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if multiQueue {
		flags |= unix.IFF_MULTI_QUEUE
	}
	if create {
		flags |= unix.IFF_TUN_EXCL
	}
	request.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return -1, errors.Join(fmt.Errorf("set tap %s: %w", name, err), unix.Close(fd))
	}
	return fd, nil
}

// openQueues opens n queues of one tap, see openQueue. A tap that it makes
// vanishes with its last descriptor, until keep.
func openQueues(name string, n int, create bool) ([]int, error) {
	var fds []int
	for i := range n {
		fd, err := openQueue(name, n > 1, create && i == 0)
		if err != nil {
			return nil, errors.Join(err, closeFDs(fds))
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// keep lets the tap outlive the processes that have it open, so that the gate
// of a VM that has left keeps forwarding while its agent restarts.
func keep(fd int) error {
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make tap persistent: %w", err)
	}
	return nil
}

// queueName gives the name of the tap that fd is a queue of.
func queueName(fd int) (string, error) {
	request, err := unix.NewIfreq("x") // filled in by the kernel
	if err != nil {
		return "", err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, request); err != nil {
		return "", fmt.Errorf("ask descriptor %d for its tap: %w", fd, err)
	}
	return request.Name(), nil
}

func closeFDs(fds []int) error {
	var errs []error
	for _, fd := range fds {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// OpenVhost opens n descriptors of the kernel's virtio-net back end, one per
// queue. The caller closes them. fleet.Unsupported if the host has none.
func OpenVhost(n int) ([]int, error) {
	var fds []int
	for range n {
		fd, err := unix.Open("/dev/vhost-net", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			return nil, errors.Join(&fleet.Error{Code: fleet.Unsupported, Op: "open", Subject: "vhost-net", Err: err,
				Cause: "this host has no kernel back end for virtio-net", Hint: "load the kernel module vhost_net"}, closeFDs(fds))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open /dev/vhost-net: %w", err), closeFDs(fds))
		}
		fds = append(fds, fd)
	}
	return fds, nil
}
