package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// killTime bounds how long killed processes may take to disappear.
	killTime = 10 * time.Second
	// killRounds bounds how often the processes are listed again for those
	// that were forked while their parents were being killed.
	killRounds = 50
	// quietRounds is after how many looks in a row that have found nobody the
	// lab counts as empty although each has missed a process that ended just
	// then. On a busy machine that is a stranger, and somewhere one always is.
	quietRounds = 3
)

// identity is what the kernel tells namespaces apart by. It stands for the
// same namespace as long as somebody holds that.
type identity struct{ device, inode uint64 }

func identify(path string) (identity, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return identity{}, err
	}
	return identity{device: stat.Dev, inode: stat.Ino}, nil
}

// grip holds namespaces by descriptors, so that their identities stay theirs
// whatever becomes of their names.
type grip struct {
	files  []*os.File
	inside map[identity]bool // namespaces
	shown  map[identity]bool // their lists of devices, see deviceList
}

// deviceList gives the file under /proc that lists the devices of a process's
// network namespace. The kernel has one such file for each namespace, and shows
// it also of processes whose namespace itself this one may not look at.
func deviceList(process string) string { return "/proc/" + process + "/net/dev" }

// grasp takes hold of the named namespaces; names that are not there are left
// out. The caller lets go.
func grasp(names []string) (*grip, error) {
	g := &grip{inside: make(map[identity]bool), shown: make(map[identity]bool)}
	for _, name := range names {
		file, err := os.Open(filepath.Join(netnsDir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			g.files = append(g.files, file)
			err = g.add(file)
		}
		if err != nil {
			g.letGo()
			return nil, fmt.Errorf("namespace %s: %w", name, err)
		}
	}
	return g, nil
}

// add takes a namespace in that somebody else holds open. Whatever is said to
// be the lab's: never the one where this process is at home. That is not what
// /proc/self says, which is where its first thread happens to be.
func (g *grip) add(file *os.File) error {
	home, err := identify("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return err
	}
	id := identity{device: stat.Dev, inode: stat.Ino}
	if id == home || g.inside[id] {
		return nil
	}
	return elsewhere(func() error {
		if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); errors.Is(err, unix.EINVAL) {
			return nil // a name that nothing was given to
		} else if err != nil {
			return fmt.Errorf("enter: %w", err)
		}
		shown, err := identify(deviceList("thread-self"))
		if err == nil {
			g.inside[id], g.shown[shown] = true, true
		}
		return err
	})
}

func (g *grip) letGo() {
	for _, file := range g.files {
		file.Close()
	}
}

// killInside kills every process, this one apart, that is in one of the
// namespaces, and returns once a look at all processes has found none.
func (g *grip) killInside() error {
	deadline := time.Now().Add(killTime)
	quiet := 0
	for range killRounds {
		found, err := g.killOnce()
		if err := errors.Join(err, waitGone(found.killed, deadline)); err != nil {
			return err
		}
		if len(found.killed) > 0 {
			quiet = 0
			continue
		}
		quiet++
		if !found.missed || quiet == quietRounds {
			return nil
		}
	}
	return errors.New("processes of the lab fork faster than they can be killed")
}

// look is what one look at all processes has come to.
type look struct {
	killed []int // pidfds
	missed bool  // one has ended before it was looked at, and may have forked before
}

// killOnce kills what is there now.
func (g *grip) killOnce() (found look, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return found, err
	}
	var failed []error
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		pidfd, err := g.killIfInside(pid)
		switch {
		case errors.Is(err, errEnded):
			found.missed = true
		case err != nil:
			failed = append(failed, fmt.Errorf("process %d: %w", pid, err))
		case pidfd >= 0:
			found.killed = append(found.killed, pidfd)
		}
	}
	return found, errors.Join(failed...)
}

// errEnded says that a process is no more.
var errEnded = errors.New("process has ended")

// killIfInside kills one process if it is in one of the namespaces, and gives
// its pidfd then, else -1. Nothing but its end counts as such: whatever else
// keeps it from being looked at or killed is an error.
func (g *grip) killIfInside(pid int) (pidfd int, err error) {
	pidfd, err = unix.PidfdOpen(pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		// The latter two: the number is no process's now, but a thread's, or
		// its process is just being reaped (pidfd_open(2), kernel/pid.c).
		return -1, errEnded
	case err != nil:
		return -1, os.NewSyscallError("pidfd_open", err)
	}
	is, err := g.has(pid, pidfd)
	if is {
		if err = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err == nil {
			return pidfd, nil
		}
		if errors.Is(err, unix.ESRCH) {
			err = errEnded
		}
	}
	unix.Close(pidfd)
	return -1, err
}

// has tells whether the process is in one of the namespaces. Its first
// thread's counts; if that one has ended and others have not, theirs.
func (g *grip) has(pid, pidfd int) (bool, error) {
	id, err := identify(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err == nil {
		return g.inside[id], nil
	}
	if errors.Is(err, unix.EACCES) {
		if id, err = identify(deviceList(strconv.Itoa(pid))); err == nil {
			return g.shown[id], nil
		}
	}
	ended, pollErr := pollPidfd(pidfd, 0)
	switch {
	case pollErr != nil:
		return false, pollErr
	case ended:
		return false, errEnded
	case !errors.Is(err, unix.ENOENT):
		return false, err
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", pid))
	if err != nil {
		return false, err
	}
	for _, thread := range threads {
		// A thread that can't be asked has ended, or is past the point where
		// it gave its namespace away.
		if id, err := identify(thread); err == nil && g.inside[id] {
			return true, nil
		}
	}
	return false, errEnded // or nearly so: look again
}

// waitGone waits until each of the processes has ended, and closes the pidfds.
func waitGone(pidfds []int, deadline time.Time) error {
	var failed error
	for _, pidfd := range pidfds {
		ended, err := pollPidfd(pidfd, time.Until(deadline))
		if err == nil && !ended {
			err = fmt.Errorf("a killed process of the lab is still there after %s", killTime)
		}
		if err != nil {
			failed = err
		}
		unix.Close(pidfd)
	}
	return failed
}

// pollPidfd waits for the end of a process, at most so long.
func pollPidfd(pidfd int, limit time.Duration) (ended bool, err error) {
	deadline := time.Now().Add(limit)
	for {
		left := max(0, time.Until(deadline))
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return ready > 0, err
	}
}
