package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

const (
	// vnetHeader is the size of struct virtio_net_hdr (linux/virtio_net.h),
	// which a packet socket wants before each frame. A tap's own header may
	// be longer; it begins with the same fields.
	vnetHeader = 10
	// maxFrame is the largest segment that a tap gives out, with room for
	// its Ethernet and VLAN headers.
	maxFrame = 1<<16 + 64
	// emptyPoll is how often WaitEmpty looks. The kernel has no event for
	// "ring has become empty".
	emptyPoll = 200 * time.Microsecond
)

// Drain takes what waits in the tap for its guest and sends each frame through
// the gate again, which must be Redirect at the source, after its QEMU has
// stopped, and Returning at the target, after an abort. It returns when the ring is empty and
// no frame that was in flight when Drain began can come into it any more; the
// last takes a few milliseconds to some tens of them, while nothing is held up.
// It gives the number of frames sent. An error about single frames does not
// stop it; they are lost and not counted.
func (t *Tap) Drain(ctx context.Context) (frames int, err error) {
	gate, err := t.Gate()
	if err != nil {
		return 0, err
	}
	if gate.Mode != Redirect && gate.Mode != Returning {
		return 0, &fleet.Error{Code: fleet.Conflict, Op: "drain", Subject: t.name,
			Cause: fmt.Sprintf("the gate is %v, the frames would come back", gate.Mode)}
	}
	t.fdMu.RLock()
	defer t.fdMu.RUnlock()
	d := drain{tap: t, to: &unix.SockaddrLinklayer{Ifindex: t.ifindex}}
	if err := d.all(ctx); err != nil {
		return d.frames, errors.Join(err, d.failed)
	}
	if err := t.host.filter.await(); err != nil {
		return d.frames, fmt.Errorf("wait for frames in flight to %s: %w", t.name, err)
	}
	err = d.all(ctx)
	return d.frames, errors.Join(err, d.failed)
}

// drain is one run of Drain.
type drain struct {
	tap    *Tap
	to     *unix.SockaddrLinklayer
	buffer []byte
	frames int
	failed error // the first frame that could not be sent
}

// all empties every queue of the tap.
func (d *drain) all(ctx context.Context) error {
	for _, fd := range d.tap.fds {
		if err := d.queue(ctx, fd); err != nil {
			return fmt.Errorf("drain %s: %w", d.tap.name, err)
		}
	}
	return nil
}

// queue empties one queue. What it may read is bounded: a ring that does not
// get empty is being filled past the gate.
func (d *drain) queue(ctx context.Context, fd int) error {
	header, err := unix.IoctlGetInt(fd, unix.TUNGETVNETHDRSZ)
	if err != nil {
		return fmt.Errorf("ask for header size: %w", err)
	}
	if header < vnetHeader {
		return fmt.Errorf("the tap's header has %d bytes, %d are needed", header, vnetHeader)
	}
	if len(d.buffer) < header+maxFrame {
		d.buffer = make([]byte, header+maxFrame)
	}
	for range 2 * QueueLength {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Read(fd, d.buffer)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN || err == unix.EBADFD: // empty; switched off by the guest
			return nil
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n <= header:
			return fmt.Errorf("read %d bytes, less than a header", n)
		}
		d.send(d.buffer[:n], header)
	}
	return errors.New("the ring does not get empty")
}

// send sends a frame as it was read from the tap.
func (d *drain) send(frame []byte, header int) {
	start := header - vnetHeader
	copy(frame[start:], frame[:vnetHeader])
	if err := sendFrame(d.tap.host.ports.inject, frame[start:], d.to); err != nil {
		if d.failed == nil {
			d.failed = fmt.Errorf("send a frame of %s on: %w", d.tap.name, err)
		}
		return
	}
	d.frames++
}

// WaitEmpty waits until the guest's side has read every frame that waits in
// the tap.
func (t *Tap) WaitEmpty(ctx context.Context) error {
	late, err := poll(ctx, emptyPoll, t.empty)
	if late {
		return fmt.Errorf("wait until %s is empty: %w", t.name, ctx.Err())
	}
	return err
}

// poll looks again and again, where the kernel tells nothing, until there is nothing
// left to wait for, or an error; late if ctx ends before.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) (late bool, err error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ready, err := done(); err != nil || ready {
			return false, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return true, nil
		}
	}
}

func (t *Tap) empty() (bool, error) {
	t.fdMu.RLock()
	defer t.fdMu.RUnlock()
	polled := make([]unix.PollFd, len(t.fds))
	for i, fd := range t.fds {
		polled[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	if _, err := unix.Poll(polled, 0); err != nil {
		if err == unix.EINTR {
			return false, nil
		}
		return false, fmt.Errorf("poll %s: %w", t.name, err)
	}
	for _, p := range polled {
		if p.Revents&unix.POLLIN != 0 {
			return false, nil
		}
	}
	return true, nil
}
