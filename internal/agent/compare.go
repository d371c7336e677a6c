package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/imagelock"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

const (
	// lookWithin bounds all that a target looks at of its source: an agent that is
	// started again is back by then.
	lookWithin = 20 * time.Second
	lookAgain  = 200 * time.Millisecond // between tries
)

// lookAtSource has the source's agent show its instance, and compares with it what
// this host sees, before anything is made here. It gives the source's machine, nil if
// there is nobody to ask.
func (m *machine) lookAtSource(ctx context.Context, want *godwitv1.PrepareTarget) (fleet.Machine, error) {
	address := peerAddress(want.GetSourceAddress(), want.GetSourcePeerPort())
	if address == "" {
		return nil, nil
	}
	spec, err := wire.DecodeSpec(want.GetInstance().GetSpec())
	if err != nil {
		return nil, err
	}
	if err := m.filesAnswer(ctx, spec); err != nil {
		return nil, err
	}
	source := peerRecord{Host: fleet.HostName(want.GetSource()), Address: address}
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	for {
		seen, err := m.lookOnce(ctx, source, spec)
		if fleet.CodeOf(err) != fleet.Unavailable {
			return seen, err
		}
		again := time.NewTimer(lookAgain)
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return nil, err
		}
	}
}

func (m *machine) lookOnce(ctx context.Context, source peerRecord, spec fleet.VMSpec) (fleet.Machine, error) {
	failed := func(err error) (fleet.Machine, error) {
		return nil, &fleet.Error{
			Code: fleet.CodeOf(err), Op: "compare with the source", Subject: "vm " + string(m.key.vm), Err: err,
			Cause: fmt.Sprintf("the agent on %s does not show the instance there", source.Host),
			Hint:  fmt.Sprintf("see that the agent on %s is up, has this one's version, and can be reached from %s at %s", source.Host, m.agent.config.Name, source.Address),
		}
	}
	client, err := m.agent.dialPeer(source)
	if err != nil {
		return failed(err)
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(ctx) // ends the call, and with it the locks
	defer cancel()
	stream, err := client.ShowInstance(ctx, &godwitv1.ShowInstanceRequest{Vm: string(m.key.vm), Epoch: uint64(m.key.epoch - 1), Uid: string(m.uid)})
	if err != nil {
		return failed(err)
	}
	defer stream.Close()
	if !stream.Receive() {
		if fleet.CodeOf(stream.Err()) == fleet.Unsupported { // it is older than this
			return nil, nil
		}
		return failed(errors.Join(stream.Err(), ctx.Err()))
	}
	shown := stream.Msg()
	return wire.MachineOf(shown.GetMachine()), m.compareImages(ctx, source.Host, spec, shown.GetImages())
}

// compareImages refuses a target that does not see the images of its source.
func (m *machine) compareImages(ctx context.Context, source fleet.HostName, spec fleet.VMSpec, images []*godwitv1.ShownImage) error {
	different, late := answering(ctx, func() error {
		for _, disk := range spec.Disks {
			if disk.Kind != fleet.DiskFile {
				continue
			}
			if err := m.compareImage(source, disk, images); err != nil {
				return err
			}
		}
		return nil
	})
	if late != nil {
		return m.agent.notAnswering("compare disks", m.key.vm)
	}
	return different
}

func (m *machine) compareImage(source fleet.HostName, disk fleet.Disk, images []*godwitv1.ShownImage) error {
	host := m.agent.config.Name
	refuse := func(cause, hint string) error {
		return &fleet.Error{Code: fleet.Conflict, Op: "use disk", Subject: disk.Name, Cause: cause, Hint: hint}
	}
	size, err := imagelock.Size(disk.Path)
	if err != nil {
		return &fleet.Error{Code: fleet.Failed, Op: "open disk", Subject: disk.Name, Err: err, Hint: sharedHint(disk.Path)}
	}
	image := shownImage(images, disk.Name)
	switch {
	case image == nil:
		return refuse(fmt.Sprintf("the instance on %s has no such disk of kind file", source), "stop and start the VM, whose record was changed since it began")
	case disk.ReadOnly && uint64(size) != image.GetBytes():
		return refuse(fmt.Sprintf("%s has %d bytes on %s and %d on %s", disk.Path, image.GetBytes(), source, size, host), "give both hosts the same file, or a copy of it")
	case disk.ReadOnly:
		return nil
	}
	seen, err := imagelock.Sees(disk.Path, image.GetLockedByte())
	if err != nil {
		return &fleet.Error{Code: fleet.Unsupported, Op: "look for locks", Subject: disk.Name, Err: err, Hint: sharedHint(disk.Path)}
	}
	switch {
	case seen:
		return nil
	case imagelock.IsDevice(disk.Path):
		return refuse(fmt.Sprintf("%s is a block device, and a lock that %s takes on it is not seen on %s", disk.Path, source, host),
			"make the disk a volume (godwit volume serve): its server keeps two hosts from writing at once")
	}
	return refuse(fmt.Sprintf("%s on %s is not the file that %s has as %s, or locks that %s takes on it are not seen on %s",
		disk.Path, host, source, image.GetPath(), source, host), sharedHint(disk.Path))
}

func shownImage(images []*godwitv1.ShownImage, disk string) *godwitv1.ShownImage {
	for _, image := range images {
		if image.GetDisk() == disk {
			return image
		}
	}
	return nil
}

// sharedHint says what a file needs that more than one host uses.
func sharedHint(path string) string {
	return fmt.Sprintf("mount one file system with locks that all hosts see (NFS without nolock or local_lock) at %s on both, or make the disk a volume", filepath.Dir(path))
}

// describeWithin bounds what a QEMU takes to say what its guest sees.
const describeWithin = 20 * time.Second

// compareMachine refuses a target whose guest would see another machine than it has at
// the source.
func (m *machine) compareMachine(ctx context.Context, source fleet.HostName, seen fleet.Machine) error {
	if seen == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, describeWithin)
	defer cancel()
	own, err := m.instance.Describe(ctx)
	if err != nil {
		return err
	}
	differences := seen.Differences(own)
	if len(differences) == 0 {
		return nil
	}
	var list []string
	for _, one := range differences[:min(len(differences), differencesShown)] {
		list = append(list, one.String())
	}
	if more := len(differences) - len(list); more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return &fleet.Error{
		Code: fleet.Conflict, Op: "prepare the target", Subject: "vm " + string(m.key.vm),
		Cause: fmt.Sprintf("its guest would see another machine on %s than on %s: %s", m.agent.config.Name, source, strings.Join(list, "; ")),
		Hint:  differences[0].Remedy(),
	}
}

// differencesShown is how many an error names.
const differencesShown = 6

// tellMachine says what the guest of a target sees that runs, for the server to
// compare. Nobody waits for it.
func (m *machine) tellMachine(ctx context.Context, instance *qemu.Instance, migration string) {
	ctx, cancel := context.WithTimeout(ctx, describeWithin)
	defer cancel()
	own, err := instance.Describe(ctx)
	if err != nil {
		m.agent.log.Warn("a target's machine is not compared with its source's", "vm", m.key.vm, "migration", migration, "error", err)
		return
	}
	m.mu.Lock()
	late := m.record.Migration != migration // it has finished, and its facts are forgotten
	m.mu.Unlock()
	if !late {
		m.fact(migration, &godwitv1.Report{Event: &godwitv1.Report_TargetCompared{TargetCompared: &godwitv1.TargetCompared{Machine: wire.EncodeMachine(own)}}})
	}
}
