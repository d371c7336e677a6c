package qemu

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// Instance is one running QEMU, or one that has ended. See the package comment
// for who owns what.
type Instance struct {
	config  Config // its cards with mu held, all else without
	process *process
	monitor *qmp.Client
	can     Abilities
	loaded  atomic.Bool // it is known to have loaded what came to it, and sends nothing yet

	mu     sync.Mutex
	record record // as it is written, but for its Config
}

// attach makes an Instance of a process whose monitor has answered.
func attach(ctx context.Context, r record, p *process, monitor *qmp.Client) (*Instance, error) {
	i := &Instance{config: r.Config, process: p, monitor: monitor, can: r.Config.Known, record: r}
	if i.can.Schema != nil && i.can.Version == versionOf(monitor) && i.can.Accel == r.Config.Accel {
		return i, nil
	}
	var err error
	if i.can, err = askAbilities(ctx, monitor, r.Config.Accel); err != nil {
		return nil, err
	}
	return i, nil
}

// Abilities gives what the process can do, whatever is installed by now.
func (i *Instance) Abilities() Abilities { return i.can }

// Config gives what the instance was started with, with the cards that it has now.
// The NICs' descriptors mean nothing after an adoption.
func (i *Instance) Config() Config {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.config
}

// setConfig writes down which cards the instance has, and then has it so.
func (i *Instance) setConfig(next Config) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := i.record
	r.Config = next
	if err := r.write(); err != nil {
		return err
	}
	i.config.Disks, i.config.NICs, i.config.RootPorts, i.config.VolumeCreds = next.Disks, next.NICs, next.RootPorts, next.VolumeCreds
	return nil
}

// PID gives the number of the process.
func (i *Instance) PID() int { return i.process.pid }

// Monitor runs commands that have no method here.
func (i *Instance) Monitor() qmp.Executor { return i.monitor }

// Exited is closed when the process has ended. It stays open after Close.
func (i *Instance) Exited() <-chan struct{} { return i.process.exited }

// Ended tells whether the process has ended.
func (i *Instance) Ended() bool {
	select {
	case <-i.process.exited:
		return true
	default:
		return false
	}
}

// ExitCause says how the process ended, with the last lines of its log. It has
// meaning only after Exited.
func (i *Instance) ExitCause() string { return exitCause(i.process, i.config.Dir) }

// Close lets go of the instance, which runs on and can be adopted. Calls that
// are under way fail. An instance that has ended must be closed, too.
func (i *Instance) Close() error {
	err := i.monitor.Close()
	i.process.release()
	return err
}

// RunState is QEMU's state of the vCPUs.
type RunState string

// Switching: stopped by QEMU itself, at the end of a copy.
func (s RunState) Switching() bool { return qmp.RunState(s) == qmp.RunStateFinishMigrate }

// Running: the vCPUs run.
func (s RunState) Running() bool { return qmp.RunState(s) == qmp.RunStateRunning }

// Waiting: for a source's state, or with all of it for Resume.
func (s RunState) Waiting() bool {
	return qmp.RunState(s) == qmp.RunStateInmigrate || qmp.RunState(s) == qmp.RunStatePaused
}

// Failing: stopped, because a disk refused.
func (s RunState) Failing() bool { return qmp.RunState(s) == qmp.RunStateIOError }

// Sent: stopped, and a target has taken all of it.
func (s RunState) Sent() bool { return qmp.RunState(s) == qmp.RunStatePostmigrate }

// Status asks for the state of the vCPUs.
func (i *Instance) Status(ctx context.Context) (RunState, error) {
	status, err := qmp.QueryStatus(ctx, i.monitor)
	return RunState(status.Status), i.wrap("ask for the state", err)
}

// Stop pauses the vCPUs. A source that was stopped so does not run on by itself
// when its migration fails.
func (i *Instance) Stop(ctx context.Context) error {
	return i.wrap("stop", qmp.Stop(ctx, i.monitor))
}

// Resume runs the vCPUs, and gives QEMU's own time at which they began, zero
// if they were running. Conflict while a migration is under way in either
// direction: QEMU takes the command on a target that has not loaded as an order
// to run as soon as it has.
func (i *Instance) Resume(ctx context.Context) (time.Time, error) {
	if err := i.mayResume(ctx); err != nil {
		return time.Time{}, err
	}
	events := i.monitor.Subscribe(1, qmp.EventResume)
	defer events.Close()
	if err := qmp.Cont(ctx, i.monitor); err != nil {
		return time.Time{}, i.wrap("resume", err)
	}
	select {
	case event := <-events.Events(): // QEMU wrote it before its reply
		return event.Time, nil
	default:
		return time.Time{}, nil
	}
}

// NoteLoaded says that a target has told by an event that its state is loaded:
// QEMU does so when it is ready to run. Then Resume is a single command, which
// otherwise asks first.
func (i *Instance) NoteLoaded() { i.loaded.Store(true) }

func (i *Instance) mayResume(ctx context.Context) error {
	if i.loaded.Load() {
		return nil
	}
	refused := func(cause string) error {
		return &fleet.Error{Code: fleet.Conflict, Op: "resume", Subject: "vm " + string(i.config.VM), Cause: cause}
	}
	status, err := qmp.QueryStatus(ctx, i.monitor)
	if err != nil {
		return i.wrap("resume", err)
	}
	switch status.Status {
	case qmp.RunStateRunning, qmp.RunStateIOError, qmp.RunStatePostmigrate:
		return nil
	case qmp.RunStatePrelaunch, qmp.RunStatePaused, qmp.RunStateSuspended:
	default:
		return refused("QEMU is in state " + string(status.Status))
	}
	// A target loads in state inmigrate, which is refused above. It is paused
	// with a migration under way only in postcopy, which has its own rules.
	now, err := qmp.QueryMigrate(ctx, i.monitor)
	if err != nil {
		return i.wrap("resume", err)
	}
	isTarget := i.config.Incoming && now.RAM == nil // a source knows of memory
	if s := statusOf(now); isTarget && s.UnderWay() {
		return refused("its state is still being loaded: " + string(s))
	}
	i.loaded.Store(isTarget)
	return nil
}

// Powerdown presses the guest's power button. What follows is the guest's choice.
func (i *Instance) Powerdown(ctx context.Context) error {
	return i.wrap("power down", qmp.SystemPowerdown(ctx, i.monitor))
}

// Quit tells QEMU to end, which it does after this returns: see Exited.
func (i *Instance) Quit(ctx context.Context) error {
	return i.wrap("quit", qmp.Quit(ctx, i.monitor))
}

// Kill ends the process and waits for its end until ctx ends. It can be
// called again, and on an instance that has ended.
func (i *Instance) Kill(ctx context.Context) error {
	if i.Ended() {
		return nil
	}
	return killError(i.config.VM, i.process.kill(ctx))
}

func killError(vm fleet.VMName, err error) error {
	if err == nil {
		return nil
	}
	return &fleet.Error{Code: fleet.Failed, Op: "kill QEMU", Subject: "vm " + string(vm), Cause: "the process does not end", Err: err}
}

// Announce lets the network cards tell the network where the guest is (RARP),
// five times within half a second.
func (i *Instance) Announce(ctx context.Context) error {
	return i.wrap("announce", qmp.AnnounceSelf(ctx, i.monitor, qmp.AnnounceSelfArgs{Initial: 50, Max: 550, Rounds: 5, Step: 100}))
}

// wrap classes what a monitor command ended with.
func (i *Instance) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	e := &fleet.Error{Code: fleet.Failed, Op: op, Subject: "vm " + string(i.config.VM), Err: err}
	if i.Ended() {
		e.Cause = i.ExitCause()
	}
	return e
}
