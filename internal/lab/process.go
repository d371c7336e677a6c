package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// killTime bounds how long killed processes may take to disappear.
const killTime = 10 * time.Second

// killRounds bounds how often the processes are listed again for those that
// were forked while their parents were being killed.
const killRounds = 20

// Cmd is an exec.Cmd that starts inside a namespace, in a process group of
// its own: the Ctrl-C that a terminal sends reaches the lab's owner only. Its
// mounts, unlike those of "ip netns exec", are the caller's.
type Cmd struct {
	*exec.Cmd
	namespace *Namespace
}

// Command gives a program to be started in the namespace. As with
// exec.CommandContext it is killed when ctx ends; what it started is not.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return &Cmd{Cmd: cmd, namespace: n}
}

// Start starts the program.
func (c *Cmd) Start() error { return c.namespace.Do(c.Cmd.Start) }

// Run starts the program and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and gives its standard output. Its standard error
// is in the error.
func (c *Cmd) Output() ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(c.Path), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), err
}

// CombinedOutput runs the program and gives both its outputs.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var both bytes.Buffer
	c.Stdout, c.Stderr = &both, &both
	err := c.Run()
	return both.Bytes(), err
}

// identity is what the kernel tells namespaces apart by.
type identity struct{ device, inode uint64 }

func identify(path string) (identity, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return identity{}, err
	}
	return identity{device: stat.Dev, inode: stat.Ino}, nil
}

// killInside kills every process, this one apart, that is in one of the named
// namespaces, and waits until they are gone.
func killInside(names []string) error {
	inside := make(map[identity]bool)
	for _, name := range names {
		id, err := identify(filepath.Join(netnsDir, name))
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("namespace %s: %w", name, err)
		}
		inside[id] = true
	}
	// Whatever the names say: never where this process is at home.
	if home, err := identify("/proc/self/ns/net"); err == nil {
		delete(inside, home)
	}
	deadline := time.Now().Add(killTime)
	for range killRounds {
		killed, err := killOnce(inside)
		if err != nil || len(killed) == 0 {
			return err
		}
		if err := waitGone(killed, deadline); err != nil {
			return err
		}
	}
	return errors.New("processes of the lab fork faster than they can be killed")
}

// killOnce kills what is there now and gives the pidfds of what it killed.
func killOnce(inside map[identity]bool) (killed []int, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		id, err := identify(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err != nil || !inside[id] {
			unix.Close(pidfd) // a stranger, a zombie, or gone
			continue
		}
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
			unix.Close(pidfd)
			continue // gone
		}
		killed = append(killed, pidfd)
	}
	return killed, nil
}

// waitGone waits until each of the processes has ended, and closes the pidfds.
func waitGone(pidfds []int, deadline time.Time) error {
	var failed error
	for _, pidfd := range pidfds {
		if err := waitPidfd(pidfd, deadline); err != nil {
			failed = err
		}
		unix.Close(pidfd)
	}
	return failed
}

func waitPidfd(pidfd int, deadline time.Time) error {
	for {
		left := max(0, time.Until(deadline))
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left/time.Millisecond))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case ready == 0:
			return fmt.Errorf("a killed process of the lab is still there after %s", killTime)
		default:
			return nil
		}
	}
}
