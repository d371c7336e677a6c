package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

const (
	vmName = "postgres"
	// marker begins the lines that the guest means for this program.
	marker = "godwit-postgres: "
	// pending is how many lines wait while nobody wants one.
	pending = 4096
)

// boot starts the guest on a copy of its image, and with a new volume.
func (o options) boot(ctx context.Context, f *fleetlab.Fleet) error {
	root := filepath.Join(f.Lab.Dir(), "root.raw")
	output, err := exec.CommandContext(ctx, "cp", "--sparse=always", filepath.Join(o.guest, "root.raw"), root).CombinedOutput()
	if err != nil {
		return &fleet.Error{Code: fleet.NotFound, Op: "copy", Subject: "the guest's image", Cause: strings.TrimSpace(string(output)),
			Hint: "run scripts/setup postgres", Err: err}
	}
	data, err := f.VolumeServer("v1").Disk(ctx, "data", dataSize)
	if err != nil {
		return err
	}
	_, err = f.API.VM.Create(ctx, &godwitv1.CreateVMRequest{Name: vmName, Host: hosts[0], Spec: &godwitv1.VMSpec{
		Cpus: 1, MemoryBytes: uint64(memory),
		Boot: &godwitv1.Boot{
			Kernel: filepath.Join(o.guest, "vmlinuz"), Initrd: filepath.Join(o.guest, "initrd"),
			Cmdline: "console=ttyS0 quiet mitigations=off panic=-1 root=/dev/vda rw init=/sbin/guest",
		},
		Disks: []*godwitv1.Disk{{Name: "root", Kind: "file", Path: root, Format: "raw"}, data},
	}})
	return err
}

// listener reads what the guest says on its console, wherever it is.
type listener struct {
	lines chan string // what it means for us
	last  chan error  // why there is nothing more
	end   context.CancelFunc
}

// listen opens the VM's console; close must follow.
func listen(ctx context.Context, f *fleetlab.Fleet) *listener {
	ctx, end := context.WithCancel(ctx)
	l := &listener{lines: make(chan string, pending), last: make(chan error, 1), end: end}
	text, writer := io.Pipe()
	go func() { writer.CloseWithError(follow(ctx, f, writer)) }()
	go func() {
		scanner := bufio.NewScanner(text)
		for scanner.Scan() {
			if _, line, ours := strings.Cut(strings.TrimSpace(scanner.Text()), marker); ours && line != "" {
				select {
				case l.lines <- line:
				case <-ctx.Done():
				}
			}
		}
		l.last <- errors.Join(scanner.Err(), errors.New("the guest has ended"))
	}()
	return l
}

// follow copies the console from its beginning.
func follow(ctx context.Context, f *fleetlab.Fleet, to io.Writer) error {
	stream, err := f.API.VM.Console(ctx, &godwitv1.ConsoleRequest{Name: vmName, HistoryBytes: uint64(fleet.MiB)})
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if _, err := to.Write(stream.Msg().GetOutput()); err != nil {
			return err
		}
	}
	return stream.Err()
}

func (l *listener) close() { l.end() }

// await gives the first line that is wanted. An error that the guest tells of is one.
func (l *listener) await(ctx context.Context, within time.Duration, wanted func(string) bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	last := "nothing"
	for {
		select {
		case line := <-l.lines:
			if strings.HasPrefix(line, `{"error"`) {
				return "", fmt.Errorf("the guest: %s", line)
			}
			if wanted(line) {
				return line, nil
			}
			last = line
		case err := <-l.last:
			return "", err
		case <-ctx.Done():
			return "", fmt.Errorf("wait for the guest, which last said %s: %w", last, ctx.Err())
		}
	}
}
