package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

// catchUpWithin is how long a source waits for its target to catch up, while the
// guest runs. What the target has not taken by then it takes in the blackout.
const catchUpWithin = time.Second

// underWay is about how long a target takes for what is in the sockets' buffers. What
// takes longer is sent in the blackout beside that.
const underWay = 20 * time.Millisecond

// awaitTarget waits until the target has taken what was sent: some megabytes are under
// way, and while it takes them it answers no write to a disk, and no flush. A target
// that does not answer is not waited for again.
func (h *handover) awaitTarget(ctx context.Context) {
	h.mu.Lock()
	peer := h.record.Peer
	h.mu.Unlock()
	if h.silent || peer.Address == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpWithin)
	defer cancel()
	target, err := h.agent.dialPeer(peer)
	if err == nil {
		defer target.Close()
		_, err = target.CatchUp(ctx, &godwitv1.CatchUpRequest{
			Migration: h.command.GetSubject(), Vm: string(h.key.vm), Epoch: uint64(h.key.epoch + 1),
		})
	}
	if err != nil {
		h.silent = true
		h.agent.log.Info("the target does not say that it has caught up", "vm", h.key.vm, "target", peer.Host, "error", err)
	}
}

// CatchUp is answered by QEMU's main loop, which takes the memory and lets nothing come
// between as long as there is some.
func (s peerService) CatchUp(ctx context.Context, request *godwitv1.CatchUpRequest) (*godwitv1.CatchUpResponse, error) {
	m, err := s.target(ctx, request.GetMigration(), request.GetVm(), request.GetEpoch())
	if err != nil {
		return nil, err
	}
	refusal := &fleet.Error{Code: fleet.Unavailable, Op: "catch up", Subject: "vm " + request.GetVm()}
	instance := m.held()
	if instance == nil {
		refusal.Cause = fmt.Sprintf("%s does not hold its instance yet", s.agent.config.Name)
		return nil, refusal
	}
	if !m.catching.TryLock() {
		refusal.Cause = "it is at it already"
		return nil, refusal
	}
	defer m.catching.Unlock()
	if err := flushDisks(instance); err != nil {
		return nil, err
	}
	_, err = instance.Status(ctx)
	return &godwitv1.CatchUpResponse{}, err
}

// flushDisks has the storage keep what the source has written to the local disks, so
// that QEMU's own flush, which counts, finds little to do.
func flushDisks(instance *qemu.Instance) (err error) {
	for _, disk := range instance.Config().Disks {
		if !disk.Local {
			continue
		}
		image, openErr := os.Open(disk.Path)
		if openErr != nil {
			return openErr
		}
		err = errors.Join(err, image.Sync(), image.Close())
	}
	return err
}
