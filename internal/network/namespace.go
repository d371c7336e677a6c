package network

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespace is a network namespace, held by a file descriptor.
type namespace struct{ fd int }

// callersNamespace gives the network namespace of the calling thread.
func callersNamespace() (namespace, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return namespace{}, fmt.Errorf("open this thread's network namespace: %w", err)
	}
	return namespace{fd: fd}, nil
}

func (n namespace) close() error { return unix.Close(n.fd) }

// do calls f on a thread that is in the namespace. Few things depend on the
// thread: opening a socket or /dev/net/tun, and files below /proc/sys/net.
func (n namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end, and others take its namespace for the
			// process's. While it is held here, another one does it.
			defer runtime.UnlockOSThread()
			done <- n.do(f)
			return
		}
		// Never unlocked: the thread has been moved, so it ends with this
		// goroutine instead of serving others.
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

const ipv6Settings = "/proc/sys/net/ipv6"

// hasIPv6 reports whether the kernel speaks IPv6 at all.
func (n namespace) hasIPv6() (has bool, err error) {
	err = n.do(func() error {
		_, err := os.Stat(ipv6Settings)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		has = err == nil
		return err
	})
	return has, err
}

// switchIPv6 switches the host's own IPv6 stack off or on at a device. A host
// without IPv6 is off in any case.
func (n namespace) switchIPv6(device string, on bool) error {
	disable := []byte("1")
	if on {
		disable = []byte("0")
	}
	return n.do(func() error {
		err := os.WriteFile(ipv6Settings+"/conf/"+device+"/disable_ipv6", disable, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}
