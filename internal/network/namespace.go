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
		// Never unlocked: the thread has been moved, so it ends with this
		// goroutine instead of serving others.
		runtime.LockOSThread()
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// silence keeps the host's own IPv6 stack off a device of ours. A host without
// IPv6 has no such file.
func (n namespace) silence(device string) error {
	return n.do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+device+"/disable_ipv6", []byte("1"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}
