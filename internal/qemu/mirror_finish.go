package qemu

import (
	"context"
	"fmt"
	"strings"

	"godwit.dev/godwit/internal/qmp"
)

// FinishMirrors returns when the target has all of the disks of an instance whose guest
// has stopped; an error if it has not. Mirrors that are in step stay as they are: to take
// them apart takes QEMU some milliseconds, and the guest stands still. The disks stay the
// instance's own.
func (i *Instance) FinishMirrors(ctx context.Context) error {
	finish, err := i.beginFinish(ctx)
	if err == nil {
		err = finish.wait(ctx)
	}
	return i.wrap("copy disks", err)
}

// StopMirrored is Stop, and begins to finish the copy of the disks as soon as the guest
// stands still. Unless that fails, finished is called once, and is then what
// FinishMirrors is.
func (i *Instance) StopMirrored(ctx context.Context) (finished func(context.Context) error, err error) {
	stop, err := i.monitor.Begin(ctx, "stop", nil)
	if err != nil {
		return nil, i.wrap("stop", err)
	}
	finish, finishErr := i.beginFinish(ctx) // which QEMU does after the stop
	if err := stop(ctx, nil); err != nil {
		finish.drop()
		return nil, i.wrap("stop", err)
	}
	return func(ctx context.Context) error {
		if finishErr == nil {
			finishErr = finish.wait(ctx)
		}
		return i.wrap("copy disks", finishErr)
	}, nil
}

// finishing is the end of a copy that has begun; one of both.
type finishing struct {
	instance *Instance
	asked    qmp.Wait // for the mirrors, which may be in step
	ending   *mirrorsEnding
}

// beginFinish waits for nothing. A QEMU that does not tell whether mirrors are in step
// is to end them.
func (i *Instance) beginFinish(ctx context.Context) (f finishing, err error) {
	f.instance = i
	if i.canChangeMirrors() {
		f.asked, err = i.monitor.Begin(ctx, "query-block-jobs", nil)
	} else {
		f.ending, err = i.endMirrors(ctx)
	}
	return f, err
}

func (f finishing) drop() {
	if f.ending != nil {
		f.ending.events.Close()
	}
}

func (f finishing) wait(ctx context.Context) error {
	if f.ending != nil {
		return f.ending.wait(ctx)
	}
	var jobs []qmp.BlockJob
	if err := f.asked(ctx, &jobs); err != nil {
		return err
	}
	if f.instance.inStep(mirrorsOf(jobs)) {
		return nil
	}
	ending, err := f.instance.endMirrors(ctx)
	if err == nil {
		err = ending.wait(ctx)
	}
	return err
}

// inStep tells whether the target of each local disk has written all that the guest was
// told is written. QEMU takes that back with the first write that fails, and flushes the
// target as it does the disk: if that fails, so does the migration.
func (i *Instance) inStep(jobs map[string]*qmp.BlockJob) bool {
	for _, disk := range i.localDisks() {
		job := jobs[disk]
		if job == nil || job.Status != string(qmp.JobStatusReady) || job.Error != nil || job.ActivelySynced == nil || !*job.ActivelySynced {
			return false
		}
	}
	return true
}

// mirrorsEnding are mirrors whose end was ordered.
type mirrorsEnding struct {
	instance *Instance
	events   *qmp.Subscription // of how they end
	disks    []string
	orders   []qmp.Wait // of each disk
}

// endMirrors orders the end, and waits for nothing. Without force: what is left is
// written first.
func (i *Instance) endMirrors(ctx context.Context) (*mirrorsEnding, error) {
	e := &mirrorsEnding{
		instance: i, disks: i.localDisks(),
		events: i.monitor.Subscribe(eventQueue, qmp.EventBlockJobCompleted, qmp.EventBlockJobCancelled),
	}
	for _, disk := range e.disks {
		order, err := i.monitor.Begin(ctx, "block-job-cancel", qmp.BlockJobCancelArgs{Device: mirrorJob(disk)})
		if err != nil {
			e.events.Close()
			return e, err
		}
		e.orders = append(e.orders, order)
	}
	return e, nil
}

// wait is in the blackout, so it asks nothing that it need not.
func (e *mirrorsEnding) wait(ctx context.Context) error {
	defer e.events.Close()
	under := 0
	for n, order := range e.orders {
		err := order(ctx, nil)
		if err == nil {
			under++
		} else if err := e.instance.mirrorEnded(ctx, e.disks[n], err); err != nil {
			return err
		}
	}
	for ; under > 0; under-- {
		select {
		case event, open := <-e.events.Events():
			if !open {
				return e.events.Err()
			}
			if err := mirrorResult(event); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// mirrorResult gives why a mirror that has ended was not complete.
func mirrorResult(event qmp.Event) error {
	var data qmp.BlockJobCompletedEvent
	switch err := event.Decode(&data); {
	case err != nil:
		return err
	case data.Error != nil:
		return fmt.Errorf("%s: %s", strings.TrimSuffix(data.Device, mirrorSuffix), *data.Error)
	case event.Name == qmp.EventBlockJobCancelled:
		return fmt.Errorf("%s was not copied in full", strings.TrimSuffix(data.Device, mirrorSuffix))
	}
	return nil
}

// mirrorEnded tells whether a mirror that can't be ended, for a cause, has been
// already, as it should.
func (i *Instance) mirrorEnded(ctx context.Context, disk string, cause error) error {
	jobs, err := i.mirrorJobs(ctx)
	if err != nil {
		return err
	}
	switch job := jobs[disk]; {
	case job == nil:
		return fmt.Errorf("%s is not being copied", disk)
	case job.Error != nil:
		return fmt.Errorf("%s: %s", disk, *job.Error)
	case job.Status == string(qmp.JobStatusConcluded):
		return nil
	}
	return cause
}
