package agent

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/imagelock"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

const (
	// showWithin is how long an instance is shown to the host of its target, which
	// looks at once, but on a busy host waits for its turn.
	showWithin = 20 * time.Second
	// showsMax is how many are shown at the same time, with those that wait for a
	// file that does not answer.
	showsMax = 32
)

// shown is an instance that is shown to the host of its target.
type shown struct {
	machine fleet.Machine
	images  []*godwitv1.ShownImage
	locks   []*imagelock.Shown
}

func (s *shown) close() {
	for _, lock := range s.locks {
		_ = lock.Close() // it was only read
	}
}

// ShowInstance may be asked by any host: a source hears which one its target is on
// only when the copy begins, and what is locked is in nobody's way.
func (s peerService) ShowInstance(ctx context.Context, request *godwitv1.ShowInstanceRequest, stream *connect.ServerStream[godwitv1.ShowInstanceResponse]) error {
	if callerOf(ctx).Kind != pki.Host {
		return &fleet.Error{Code: fleet.Denied, Op: "show instance", Cause: "only hosts may ask, and they show their certificates"}
	}
	instance, err := s.shownInstance(request)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, showWithin)
	defer cancel()
	one, err := s.agent.show(ctx, instance)
	if err != nil {
		return err
	}
	defer one.close()
	if err := stream.Send(&godwitv1.ShowInstanceResponse{Images: one.images, Machine: wire.EncodeMachine(one.machine)}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (s peerService) shownInstance(request *godwitv1.ShowInstanceRequest) (*qemu.Instance, error) {
	refusal := &fleet.Error{Op: "show instance", Subject: "vm " + request.GetVm()}
	m := s.agent.find(machineKey{fleet.VMName(request.GetVm()), fleet.Epoch(request.GetEpoch())})
	if m == nil || string(m.uid) != request.GetUid() {
		refusal.Code, refusal.Cause = fleet.NotFound, fmt.Sprintf("%s has no instance of it at epoch %d", s.agent.config.Name, request.GetEpoch())
		return nil, refusal
	}
	instance := m.held()
	if instance == nil {
		refusal.Code, refusal.Cause = fleet.Unavailable, fmt.Sprintf("%s does not hold its instance yet", s.agent.config.Name)
		return nil, refusal
	}
	return instance, nil
}

// show locks the images of an instance. A file that does not answer is left to a
// goroutine, which counts until it does.
func (a *Agent) show(ctx context.Context, instance *qemu.Instance) (*shown, error) {
	select {
	case a.shows <- struct{}{}:
	default:
		return nil, &fleet.Error{Code: fleet.Unavailable, Op: "show instance", Cause: fmt.Sprintf("%s shows %d at this moment", a.config.Name, showsMax), Hint: "try again"}
	}
	type answer struct {
		one *shown
		err error
	}
	done := make(chan answer, 1)
	go func() {
		one, err := showImages(instance)
		if err == nil {
			if one.machine, err = instance.Describe(ctx); err != nil {
				one.close()
			}
		}
		<-a.shows
		done <- answer{one, err}
	}()
	select {
	case got := <-done:
		return got.one, got.err
	case <-ctx.Done():
		go func() {
			if late := <-done; late.err == nil {
				late.one.close()
			}
		}()
		return nil, a.notAnswering("show instance", instance.Config().VM)
	}
}

func showImages(instance *qemu.Instance) (*shown, error) {
	one := &shown{}
	for _, disk := range instance.Config().Disks {
		if disk.Volume != nil || disk.Local {
			continue
		}
		image, err := one.add(disk, instance.PID())
		if err != nil {
			one.close()
			return nil, &fleet.Error{Code: fleet.Conflict, Op: "show disk", Subject: disk.Name, Err: err, Hint: "stop and start the VM, if its image is meant to be this one"}
		}
		one.images = append(one.images, image)
	}
	return one, nil
}

// add locks a disk's image, unless the disk is read-only: of that each host may have
// a copy.
func (s *shown) add(disk qemu.Disk, pid int) (*godwitv1.ShownImage, error) {
	size, err := imagelock.Size(disk.Path)
	if err != nil {
		return nil, err
	}
	image := &godwitv1.ShownImage{Disk: disk.Name, Path: disk.Path, Bytes: uint64(size)}
	if disk.ReadOnly {
		return image, nil
	}
	lock, err := imagelock.Show(disk.Path)
	if err != nil {
		return nil, err
	}
	s.locks, image.LockedByte = append(s.locks, lock), lock.Byte
	open, err := lock.OpenIn(pid)
	if err == nil && !open {
		err = fmt.Errorf("%s is another file than its QEMU has open: it was replaced since that started", disk.Path)
	}
	return image, err
}
