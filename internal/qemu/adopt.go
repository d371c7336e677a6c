package qemu

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// Adopt takes over a running instance that another program, or an earlier run
// of this one, started in dir. NotFound when there is none or it has ended; of an
// instance that was started in another boot of the host nothing else is looked
// at: by chance its process id may be another process's, begun as long after the
// boot.
// The monitor answers one program at a time: while another holds it, Adopt
// waits until ctx ends.
func Adopt(ctx context.Context, dir, boot string) (*Instance, error) {
	r, p, err := find(dir, boot)
	if err != nil {
		return nil, err
	}
	client, err := greet(ctx, p, filepath.Join(dir, monitorSocket))
	if err == nil {
		i, attachErr := attach(ctx, r, p, client)
		if err = attachErr; err == nil {
			return i, nil
		}
		client.Close()
	}
	defer p.release()
	select {
	case <-p.exited:
		return nil, r.gone(err)
	default:
	}
	return nil, &fleet.Error{Code: fleet.Unavailable, Op: "adopt instance", Subject: "vm " + string(r.Config.VM), Cause: "its monitor does not answer", Err: err}
}

// Kill ends the instance in dir by its process alone, and waits for its end until
// ctx ends: for one that cannot be adopted. It does nothing when there is none or
// it has ended.
func Kill(ctx context.Context, dir, boot string) error {
	r, p, err := find(dir, boot)
	if fleet.CodeOf(err) == fleet.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.release()
	return killError(r.Config.VM, p.kill(ctx))
}

// Ended tells whether it is certain that no process of an instance in dir runs.
func Ended(dir, boot string) bool {
	_, p, err := find(dir, boot)
	if err == nil {
		p.release()
	}
	return fleet.CodeOf(err) == fleet.NotFound
}

// find gives what is recorded of the instance in dir, and its process. NotFound is
// as with Adopt.
func find(dir, boot string) (record, *process, error) {
	r, err := readRecord(dir)
	if err != nil {
		return r, nil, err
	}
	if began := r.Config.Boot; began != "" && began != boot {
		return r, nil, r.gone(errors.New("the host was rebooted"))
	}
	if r.PID == 0 {
		if err := r.findByPIDFile(); err != nil {
			return r, nil, r.unseen(notStarting(dir, err))
		}
	}
	p, err := hold(r.PID, nil)
	if err != nil {
		return r, nil, r.unseen(err)
	}
	// Only now: the pidfd is of the process that has the number at this moment.
	began, err := startTime(r.PID)
	if err == nil && began == r.StartTime {
		return r, p, nil
	}
	p.release()
	if err != nil {
		return r, nil, r.unseen(err)
	}
	return r, nil, r.gone(nil)
}

func (r record) gone(err error) error {
	return &fleet.Error{Code: fleet.NotFound, Op: "adopt instance", Subject: "vm " + string(r.Config.VM), Cause: "its QEMU has ended", Err: err}
}

// unseen says why a process is not held. What can't be looked at may well run: only
// what is known to have ended is gone.
func (r record) unseen(err error) error {
	// EINVAL: a thread of another process has the number now.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return r.gone(err)
	}
	return &fleet.Error{Code: fleet.Unavailable, Op: "adopt instance", Subject: "vm " + string(r.Config.VM), Cause: "its QEMU cannot be looked at", Err: err}
}
