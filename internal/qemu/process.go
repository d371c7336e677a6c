package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// process is a QEMU held by a pidfd: what is done to it can never hit another
// process that was given its number.
type process struct {
	pid    int
	pidfd  *os.File
	child  *exec.Cmd // nil when another program started it
	exited chan struct{}
	ended  chan struct{} // the watching goroutine has returned
}

// hold opens a pidfd for the process and begins to watch for its end.
func hold(pid int, child *exec.Cmd) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	p := &process{
		pid: pid, child: child, pidfd: os.NewFile(uintptr(fd), "pidfd"),
		exited: make(chan struct{}), ended: make(chan struct{}),
	}
	go p.watch()
	return p, nil
}

// watch closes exited when the process has ended, or returns when pidfd has
// been closed. A pidfd is readable from the end of its process on.
func (p *process) watch() {
	defer close(p.ended)
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	err = raw.Read(func(fd uintptr) bool {
		events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(events, 0)
		return err == nil && n == 1
	})
	if err != nil {
		return
	}
	if p.child != nil {
		_ = p.child.Wait() // its status is in child.ProcessState
	}
	close(p.exited)
}

// kill ends the process and waits for its end until ctx ends.
func (p *process) kill(ctx context.Context) error {
	err := p.control(func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	select {
	case <-p.exited:
		return nil
	case <-p.ended:
		select {
		case <-p.exited: // both are closed then
			return nil
		default:
			return os.ErrClosed
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// control lends out the raw pidfd.
func (p *process) control(use func(fd int) error) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) { err = use(int(fd)) })
	return errors.Join(failed, err)
}

// release stops watching; the process runs on.
func (p *process) release() {
	p.pidfd.Close()
	<-p.ended
}

// logTail bounds what an error tells of the log.
const (
	logTailBytes = 4096
	logTailLines = 5
)

// waitsForMonitor is what every QEMU says at first; see addMonitor.
const waitsForMonitor = "QEMU waiting for connection on:"

// lastWords gives the last lines of the instance's log, "" if there are none.
func lastWords(dir string) string {
	file, err := os.Open(filepath.Join(dir, logFile))
	if err != nil {
		return ""
	}
	defer file.Close()
	if size, err := file.Seek(0, io.SeekEnd); err == nil {
		_, _ = file.Seek(max(0, size-logTailBytes), io.SeekStart)
	}
	text, _ := io.ReadAll(io.LimitReader(file, logTailBytes))
	lines := slices.DeleteFunc(strings.Split(string(bytes.TrimSpace(text)), "\n"), func(line string) bool {
		return strings.Contains(line, waitsForMonitor)
	})
	return strings.Join(lines[max(0, len(lines)-logTailLines):], "; ")
}

// exitCause says how the process ended, in one sentence with its last words.
func exitCause(p *process, dir string) string {
	cause := "QEMU ended"
	if p.child != nil && p.child.ProcessState != nil {
		cause = fmt.Sprintf("QEMU ended with %s", p.child.ProcessState)
	}
	if words := lastWords(dir); words != "" {
		cause += "; it said: " + words
	}
	return cause
}

func startError(c Config, cause string, err error) error {
	return &fleet.Error{Code: fleet.Failed, Op: "start QEMU", Subject: "vm " + string(c.VM), Cause: cause, Err: err,
		Hint: "QEMU's whole log is " + filepath.Join(c.Dir, logFile)}
}
