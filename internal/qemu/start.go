package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// endsWithin is how long a QEMU whose monitor failed may take to end by itself.
const endsWithin = time.Second

// killTimeout bounds the wait for a process that was killed on a failed start.
const killTimeout = 10 * time.Second

// Start runs a QEMU and waits until its monitor answers. On an error nothing
// of the instance is left but its logs, unless its process does not end: then
// Kill finds it. The error of a QEMU that died has the last lines of its log.
func Start(ctx context.Context, c Config) (*Instance, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	r := record{Config: c}
	if err := r.write(); err != nil {
		return nil, startError(c, "its record cannot be written", err)
	}
	return r.start(ctx)
}

// clear removes by what an instance is found.
func (c Config) clear() {
	for _, name := range []string{recordFile, monitorSocket, consoleSocket, pidFile} {
		os.Remove(filepath.Join(c.Dir, name))
	}
}

func (r *record) start(ctx context.Context) (*Instance, error) {
	c := r.Config
	p, err := launch(c.Binary, c.Dir, c.command)
	if err != nil {
		c.clear()
		if _, explained := errors.AsType[*fleet.Error](err); explained {
			return nil, err
		}
		return nil, startError(c, "it cannot be executed", err)
	}
	r.PID = p.pid
	if r.StartTime, err = startTime(p.pid); err == nil {
		err = r.write()
	}
	var client *qmp.Client
	if err == nil {
		client, err = greet(ctx, p, filepath.Join(c.Dir, monitorSocket))
	}
	if err == nil {
		i, attachErr := attach(ctx, *r, p, client)
		if err = attachErr; err == nil {
			return i, nil
		}
	}
	return nil, abandon(ctx, c, p, client, err)
}

// abandon ends a process that could not be started in full.
func abandon(ctx context.Context, c Config, p *process, client *qmp.Client, err error) error {
	if client != nil {
		client.Close()
	}
	defer p.release()
	// A QEMU that gives up hangs up first, and what it says of it is in its log.
	ends := time.NewTimer(endsWithin)
	defer ends.Stop()
	select {
	case <-p.exited:
		c.clear()
		return startError(c, exitCause(p, c.Dir), nil)
	case <-ends.C:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	killed := p.kill(ctx)
	if killed == nil {
		c.clear()
	}
	return startError(c, "its monitor does not answer", errors.Join(err, killError(c.VM, killed)))
}

// launch starts the process with the monitor already listening in dir, so that
// it can be connected to at once. build makes the command line, given the
// monitor's listening descriptor.
func launch(binary, dir string, build func(listener int) (*line, error)) (*process, error) {
	socket := filepath.Join(dir, monitorSocket)
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var p *process
	failed := raw.Control(func(fd uintptr) {
		var l *line
		if l, err = build(int(fd)); err == nil {
			p, err = execute(binary, dir, l)
		}
	})
	return p, errors.Join(failed, err)
}

func execute(binary, dir string, l *line) (*process, error) {
	log, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := unix.Flock(int(log.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("a QEMU that was started in %s before still lives: %w", dir, err)
	}
	command := exec.Command(binary, l.args...)
	command.Dir, command.Stdout, command.Stderr = dir, log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if l.mortal {
		command.SysProcAttr.Pdeathsig = unix.SIGKILL
	}
	for _, fd := range l.fds {
		// A duplicate, because a File closes and may configure what it holds.
		duplicate, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d cannot be passed: %w", fd, err)
		}
		file := os.NewFile(uintptr(duplicate), "passed")
		defer file.Close()
		command.ExtraFiles = append(command.ExtraFiles, file)
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	p, err := hold(command.Process.Pid, command)
	if err != nil {
		return nil, errors.Join(err, command.Process.Kill(), command.Wait())
	}
	return p, nil
}

// greet connects to the monitor, giving up when the process has ended.
func greet(ctx context.Context, p *process, socket string) (*qmp.Client, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	greeted := make(chan struct{})
	defer close(greeted)
	go func() {
		select {
		case <-p.exited:
			cancel(errors.New("QEMU ended"))
		case <-greeted:
		}
	}()
	client, err := qmp.Dial(ctx, socket)
	if errors.Is(err, qmp.ErrGone) {
		// The socket closes a moment before the process can be seen to end.
		select {
		case <-p.exited:
		case <-time.After(killTimeout):
		}
	}
	return client, err
}
