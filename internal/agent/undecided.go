package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pledge"
)

// What happens when nobody decides on a switch. The servers are the first to
// do so; when they leave the guest standing still for the migration's switch
// limit, the source asks the target to give up. A target that does writes that
// down first, and never runs its instance, whatever a server says later; so the
// source may run on, and then asks for the frames that wait in the target's taps.
// Until it has them, or a server releases the target, the instance stays as it is:
// if the target's agent ends, nobody but QEMU has the queues of the taps, except one
// that may hold the lock of an image. A target
// that has the commit's answer keeps it, and so does one of which nobody can tell
// whether it has run.

const (
	// askAfter is what the servers have beyond the limit, to whom the decision
	// belongs: their clock for it begins later.
	askAfter    = 250 * time.Millisecond
	askWithin   = 2 * time.Second // one question, with its answer
	askAgainMin = 100 * time.Millisecond
	askAgainMax = 2 * time.Second
)

// awaitDecision begins the wait of a source whose guest has just stopped. Of when
// that was by the wall clock it asks nothing: that clock may be set meanwhile.
func (m *machine) awaitDecision() {
	m.askPeer(func(ctx context.Context, target *client.Peer, migration string, peer peerRecord) {
		askAgain(ctx, peer.SwitchMax+askAfter, func() (done bool) { return m.askToGiveUp(ctx, target, migration, peer.Host) })
	})
}

// awaitFrames begins to have the frames back of a source that an earlier agent has
// let run on.
func (m *machine) awaitFrames() {
	m.askPeer(func(ctx context.Context, target *client.Peer, migration string, _ peerRecord) {
		m.haveFramesBack(ctx, target, migration)
	})
}

// askPeer begins to ask the target, until a server decides. What is begun already
// goes on.
func (m *machine) askPeer(ask func(ctx context.Context, target *client.Peer, migration string, peer peerRecord)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	peer, migration := m.record.Peer, m.record.Migration
	if m.decided != nil || peer.SwitchMax <= 0 || peer.Address == "" {
		return
	}
	ctx, cancel := context.WithCancel(m.life)
	m.decided = cancel
	go func() {
		target, err := m.agent.dialPeer(peer)
		if err != nil {
			m.agent.log.Error("the target can't be asked", "vm", m.key.vm, "target", peer.Host, "error", err)
			return
		}
		defer target.Close()
		ask(ctx, target, migration, peer)
	}()
}

// decide ends the wait: a server has decided, or the instance has ended.
func (m *machine) decide() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.decided != nil {
		m.decided()
		m.decided = nil
	}
}

// askAgain asks, after the given time, until that is done or ctx ends.
func askAgain(ctx context.Context, after time.Duration, ask func() (done bool)) {
	wait := time.NewTimer(after)
	defer wait.Stop()
	for pause := askAgainMin; ; pause = min(2*pause, askAgainMax) {
		select {
		case <-wait.C:
		case <-ctx.Done():
			return
		}
		if ask() {
			return
		}
		wait.Reset(pause)
	}
}

// askToGiveUp asks once whether the target gives up; done when it has answered, and
// the guest runs if it does.
func (m *machine) askToGiveUp(ctx context.Context, target *client.Peer, migration string, host fleet.HostName) (done bool) {
	gaveUp, err := m.askOnce(ctx, target, migration)
	switch {
	case err == nil && gaveUp:
		return m.runOnInTurn(ctx, target, migration)
	case err == nil || pledge.NoneToAsk(err):
		m.agent.log.Warn("the target keeps its right; the servers decide", "vm", m.key.vm, "target", host, "error", err)
		return true
	}
	m.agent.log.Warn("neither the servers nor the target answer; the guest stands still", "vm", m.key.vm, "target", host, "error", err)
	return false
}

func (m *machine) askOnce(ctx context.Context, target *client.Peer, migration string) (gaveUp bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	answer, err := target.GiveUp(ctx, &godwitv1.GiveUpRequest{Migration: migration, Vm: string(m.key.vm), Epoch: uint64(m.key.epoch + 1)})
	return answer.GetRefused(), err
}

// runOnInTurn lets the guest run on, and then has the frames back that wait at
// the target.
func (m *machine) runOnInTurn(ctx context.Context, target *client.Peer, migration string) bool {
	if err := m.inTurn(ctx, func() error { return m.runOn(ctx, migration) }); err != nil {
		if ctx.Err() == nil {
			m.agent.log.Error("the source does not run on yet", "vm", m.key.vm, "error", err)
		}
		return false
	}
	m.agent.log.Info("the target gave up, and the source runs on", "vm", m.key.vm, "migration", migration)
	m.haveFramesBack(ctx, target, migration)
	return true
}

// haveFramesBack has the target return the frames that wait there. When ctx ends, a
// server has decided, which has the target released, and that returns them, too.
func (m *machine) haveFramesBack(ctx context.Context, target *client.Peer, migration string) {
	told := false
	askAgain(ctx, 0, func() (done bool) {
		frames, err := m.returnOnce(ctx, target, migration)
		switch {
		case err == nil:
			m.agent.log.Info("the target has returned the frames that waited there", "vm", m.key.vm, "migration", migration, "frames", frames)
			return true
		case pledge.NoneToAsk(err): // it was released
			return true
		case !told && ctx.Err() == nil:
			m.agent.log.Warn("the target does not return the frames that wait there yet", "vm", m.key.vm, "migration", migration, "error", err)
			told = true
		}
		return false
	})
}

func (m *machine) returnOnce(ctx context.Context, target *client.Peer, migration string) (frames int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*returnWithin)
	defer cancel()
	answer, err := target.ReturnFrames(ctx, &godwitv1.ReturnFramesRequest{
		Migration: migration, Vm: string(m.key.vm), Epoch: uint64(m.key.epoch + 1), SourceAddress: m.agent.config.Address.String(),
	})
	return answer.GetFrames(), err
}

// runOn takes the VM's right up again, by the target's refusal. The worker calls
// it.
func (m *machine) runOn(ctx context.Context, migration string) error {
	allowed, write := m.record.Role.RunOn(m.record.Migration, migration)
	if !allowed {
		return errors.New("the servers have decided meanwhile")
	}
	if write {
		if err := m.setRole(ranOn, migration); err != nil {
			return err
		}
	}
	m.endCopy()
	if err := m.goOn(ctx); err != nil {
		return err
	}
	m.tellRanOn(migration)
	return nil
}

func (m *machine) tellRanOn(migration string) {
	m.fact(migration, pledge.SourceRanOn(fmt.Sprintf("no server decided in time, and %s gave up", m.record.Peer.Host)))
}

// giveUp gives the right to run up for good, if it is certain that it was never
// used. The worker calls it, so no commit's answer is being carried out.
func (m *machine) giveUp(ctx context.Context, migration string) (done bool, err error) {
	switch m.record.Role.GiveUp(m.mayHaveRun(ctx) || m.mayHaveWritten()) {
	case pledge.KeepsOwns:
		return false, nil
	case pledge.GivesUp:
		if err := m.setRole(refused, migration); err != nil {
			return false, err
		}
		m.tellRefused(migration)
	}
	return true, m.endRefused(ctx)
}

// endRefused, of the worker, ends the instance of a target that has given up, unless
// frames may wait for it: then it stays until they are returned. One that has tried
// to run, as far as is known, does not stay, since it may have locked an image that the
// source needs.
func (m *machine) endRefused(ctx context.Context) error {
	if len(m.ports) == 0 || m.lockless {
		m.keepTaps(m.ports) // with the frames
		return m.kill(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ending = true
	return nil
}

func (m *machine) tellRefused(migration string) {
	m.fact(migration, pledge.TargetRefused(fmt.Sprintf("%s asked for it, and no commit had come", m.record.Peer.Host)))
}

// mayHaveRun tells whether a target may have run an instruction.
func (m *machine) mayHaveRun(ctx context.Context) bool {
	m.mu.Lock()
	part := m.record.Role
	m.mu.Unlock()
	return part.MayHaveRun(part == arriving && m.opened(ctx))
}

// opened tells whether a gate is open, or may be.
func (m *machine) opened(ctx context.Context) bool {
	m.mu.Lock()
	instance, recorded := m.instance, len(m.record.Ports)
	m.mu.Unlock()
	ports := m.allPorts()
	for _, port := range ports {
		gate, err := port.tap.Gate()
		if err != nil {
			return true
		}
		switch gate.Mode {
		case network.Closed, network.TunnelOnly, network.Arriving:
		case network.Returning: // set of one that gave up, or after an abort
		default:
			return true
		}
	}
	if len(ports) > 0 {
		return false
	}
	// No port: only an instance that is still there, and waits, is a proof.
	if instance == nil || recorded > 0 {
		return true
	}
	state, err := instance.Status(ctx)
	return err != nil || !state.Waiting()
}
