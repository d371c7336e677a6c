package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// CreateImage makes an image that reads as zeros and takes no room yet; one that is
// there is overwritten. A QEMU that it may start for that has dir as its run
// directory, and ends with this program.
func CreateImage(ctx context.Context, binary, dir, path, format string, size fleet.Bytes) error {
	err := createImage(ctx, binary, dir, path, format, size)
	if err == nil {
		return nil
	}
	return &fleet.Error{Code: fleet.Failed, Op: "create image", Subject: path, Err: errors.Join(err, os.Remove(path))}
}

func createImage(ctx context.Context, binary, dir, path, format string, size fleet.Bytes) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if format == "raw" {
		err = file.Truncate(int64(size))
	}
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil || format == "raw" {
		return err
	}
	return formatImage(ctx, binary, dir, path, format, size)
}

// formatImage has a QEMU without a machine write the format's structures.
func formatImage(ctx context.Context, binary, dir, path, format string, size fleet.Bytes) (err error) {
	runtime.LockOSThread() // with which it ends
	defer runtime.UnlockOSThread()
	p, err := launch(binary, dir, func(listener int) (*line, error) {
		l := &line{mortal: true}
		l.add("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S")
		l.addMonitor(listener)
		return l, nil
	})
	if err != nil {
		return err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		err = errors.Join(err, p.kill(ending))
		p.release()
		os.Remove(filepath.Join(dir, monitorSocket))
	}()
	client, err := greet(ctx, p, filepath.Join(dir, monitorSocket))
	if err != nil {
		return unanswered(ctx, p, dir, err)
	}
	defer client.Close()
	file := blockNode{Driver: "file", NodeName: "file", Filename: path, Discard: "unmap"}
	if err := client.Execute(ctx, "blockdev-add", file, nil); err != nil {
		return err
	}
	const job = "create"
	create := map[string]any{"job-id": job, "options": map[string]any{"driver": format, "file": "file", "size": uint64(size)}}
	events := client.Subscribe(eventQueue, qmp.EventJobStatusChange)
	defer events.Close()
	if err := client.Execute(ctx, "blockdev-create", create, nil); err != nil {
		return err
	}
	if err := awaitJob(ctx, client, events, job); err != nil {
		return err
	}
	return client.Execute(ctx, "blockdev-del", map[string]string{"node-name": "file"}, nil) // and closes it
}

// awaitJob waits for the end of a job, and gives its error.
func awaitJob(ctx context.Context, client *qmp.Client, events *qmp.Subscription, id string) error {
	for {
		jobs, err := qmp.QueryJobs(ctx, client)
		if err != nil {
			return err
		}
		for _, job := range jobs {
			switch {
			case job.ID != id || job.Status != qmp.JobStatusConcluded:
			case job.Error != nil:
				return fmt.Errorf("QEMU says: %s", *job.Error)
			default:
				return qmp.JobDismiss(ctx, client, qmp.JobDismissArgs{ID: id})
			}
		}
		select {
		case _, open := <-events.Events():
			if !open {
				return events.Err()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
