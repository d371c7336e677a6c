package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/localdisk"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/qemu"
)

const (
	// cancelWithin bounds the end of QEMU's own copy after a cancel.
	cancelWithin = 10 * time.Second
	// returnWithin bounds the sending back of buffered frames.
	returnWithin = 5 * time.Second
)

// copying is a migration away from this host that is under way.
type copying struct {
	cancel context.CancelFunc
	retire func() // the source is to end
	done   chan struct{}
}

// startCopy begins the copy; its answer comes when everything was sent.
func (m *machine) startCopy(ctx context.Context, command *godwitv1.Command, want *godwitv1.StartCopy) *godwitv1.Report {
	if err := m.beginCopy(ctx, command, want); err != nil {
		return pledge.SourceFailed(err, m.instance == nil || m.instance.Ended())
	}
	return nil
}

func (m *machine) beginCopy(ctx context.Context, command *godwitv1.Command, want *godwitv1.StartCopy) error {
	remote, err := netip.ParseAddr(want.GetTargetAddress())
	if err != nil {
		return fmt.Errorf("target's address: %w", err)
	}
	if err := m.becomeSource(command.GetSubject(), want); err != nil {
		return err
	}
	if err := m.openTunnels(want.GetNetworks()); err != nil {
		return err
	}
	creds, err := m.credentials()
	if err != nil {
		return err
	}
	m.announce()
	ctx, cancel := context.WithCancel(ctx)
	retires := make(chan struct{})
	one := &handover{
		machine: m, command: command, remote: remote, drains: make(chan drained, 1), retires: retires,
		blackoutMax: time.Duration(want.GetBlackoutMaxMs()) * time.Millisecond, can: m.instance.Abilities(),
	}
	one.outgoing = qemu.Outgoing{
		Address: netip.AddrPortFrom(remote, uint16(want.GetTargetPort())), CredsDir: creds, TLSHostname: want.GetTarget(),
		BandwidthMax: fleet.BytesPerSecond(want.GetBandwidthMax()), Connections: int(want.GetConnections()),
		ThrottleInitial: int(want.GetThrottleInitial()), ThrottleStep: int(want.GetThrottleStep()), ThrottleMax: int(want.GetThrottleMax()),
	}
	limits(&one.outgoing, one.can)
	one.disks = newMirrors(m.instance, one.outgoing, want.GetDiskPort())
	running := &copying{cancel: cancel, retire: sync.OnceFunc(func() { close(retires) }), done: make(chan struct{})}
	m.mu.Lock()
	m.copying = running
	m.mu.Unlock()
	go func() {
		defer close(running.done)
		defer cancel()
		one.run(ctx)
	}()
	return nil
}

// becomeSource writes down that the instance is a source, if it can be one.
func (m *machine) becomeSource(migration string, want *godwitv1.StartCopy) error {
	for _, port := range m.allPorts() {
		if err := port.tap.Check(); err != nil {
			return fmt.Errorf("port %s: %w", port.Name, err)
		}
	}
	if m.runsOn() {
		return &fleet.Error{Code: fleet.Conflict, Op: "copy", Subject: "vm " + string(m.key.vm), Cause: "it runs on, by its target's refusal"}
	}
	next := m.record
	next.Role, next.Migration = source, migration
	next.Peer = peerRecord{
		Host: fleet.HostName(want.GetTarget()), Address: peerAddress(want.GetTargetAddress(), want.GetTargetPeerPort()),
		SwitchMax: time.Duration(want.GetSwitchMaxMs()) * time.Millisecond,
	}
	if err := m.note(next); err != nil {
		return err
	}
	// Of an end before this nobody says that the copy has failed by it.
	if m.instance == nil || m.instance.Ended() {
		return &fleet.Error{Code: fleet.Failed, Op: "copy", Subject: "vm " + string(m.key.vm), Cause: "its instance has ended"}
	}
	return nil
}

// limits tells QEMU to leave the end of the copy to the agent, which stops the
// guest behind a gate that is closed already.
func limits(out *qemu.Outgoing, can qemu.Abilities) {
	switch {
	case can.OnePass:
		out.DowntimeLimit = qemu.OnePass
	case can.CanHold:
		out.Hold, out.DowntimeLimit = true, holdDowntime
	default:
		out.DowntimeLimit, out.SwitchoverBandwidth = leastDowntime, leastSwitchover
	}
}

// endCopy stops what beginCopy began and waits for its end.
func (m *machine) endCopy() {
	m.mu.Lock()
	running := m.copying
	m.copying = nil
	m.mu.Unlock()
	if running != nil {
		running.cancel()
		<-running.done
	}
}

// resumeSource takes the migration back: QEMU's copy is ended, the gate opened,
// and the vCPUs run on. The server has aborted before, so the target has no
// right and never gets it.
func (m *machine) resumeSource(ctx context.Context, want *godwitv1.ResumeSource) *godwitv1.Report {
	newEpoch := fleet.Epoch(want.GetNewEpoch())
	m.endCopy()
	m.decide() // only now: the copy may just have begun to wait
	if m.instance == nil || m.instance.Ended() {
		return pledge.SourceFailed(errors.New("its instance has ended"), true)
	}
	if newEpoch > m.key.epoch { // the target may have ended the lease of the older one
		if err := m.moveVolumes(ctx, newEpoch, want); err != nil {
			return pledge.SourceFailed(err, m.instance.Ended())
		}
	}
	if err := m.goOn(ctx); err != nil {
		return pledge.SourceFailed(err, m.instance.Ended())
	}
	// The tunnels stay open: the target returns frames by them.
	next := m.record
	next.Role, next.Migration, next.Peer = alone, "", peerRecord{}
	if err := m.note(next); err != nil {
		return pledge.SourceFailed(err, false)
	}
	m.clearFacts()
	if newEpoch > m.key.epoch {
		if err := m.agent.renumber(ctx, m, newEpoch); err != nil {
			return pledge.SourceFailed(err, false)
		}
	}
	m.aloneAgain()
	return pledge.SourceResumed()
}

// goOn ends QEMU's copy, opens the gate and lets the vCPUs run on.
func (m *machine) goOn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cancelWithin)
	defer cancel()
	// First the gate: a guest that QEMU stopped runs on with the cancel, and
	// what it sends then must not be lost.
	if err := m.setMode(network.Pass); err != nil {
		return err
	}
	// The guest may wait for a target that does not answer, and QEMU with it.
	m.instance.CutMirrors(ctx)
	// Conflict: QEMU had sent everything. The target still has no right, and
	// this QEMU can run on from there.
	if err := m.instance.CancelMigration(ctx); err != nil && fleet.CodeOf(err) != fleet.Conflict {
		return err
	}
	// Before it runs: what it writes is to be in no copy but its own.
	if err := m.instance.AbandonMirrors(ctx); err != nil {
		return err
	}
	if _, err := m.instance.Resume(ctx); err != nil {
		return err
	}
	m.agent.workers.Go(func() { m.announceReturn(m.life) })
	return nil
}

// renumber gives an instance another epoch, at which its VM was given back to
// it: a new machine adopts it, as a new agent would. One that can't is adopted
// later, when the command comes again.
func (a *Agent) renumber(ctx context.Context, m *machine, epoch fleet.Epoch) error {
	next := m.record
	next.Epoch = epoch
	if err := errors.Join(m.markDisks(func(one localdisk.Copy) error {
		one.Epoch = epoch
		return a.disks.Mark(one)
	}), m.note(next)); err != nil {
		return err
	}
	renumbered := a.recorded(next, m.dir)
	if !a.add(renumbered) {
		return fmt.Errorf("%s has another instance of it at epoch %d", a.config.Name, epoch)
	}
	if err := m.letGo(); err != nil {
		a.log.Warn("an instance was not let go of in full", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
	}
	err := renumbered.adopt(ctx)
	a.remove(m) // only now: at every moment one of the two is there
	a.start(ctx, renumbered)
	if err != nil {
		return err
	}
	errs := []error{renumbered.setMode(network.Pass)}
	for _, port := range renumbered.allPorts() { // a map may have come meanwhile
		errs = append(errs, a.reapply(port.Network))
	}
	return errors.Join(errs...)
}

// runsOn: by its target's refusal. No server that knows of it ends it, and one
// that does not has it wrong.
func (m *machine) runsOn() bool {
	return m.record.Role == ranOn && !m.hasEnded()
}

var errRunsOn = errors.New("it runs on, by its target's refusal")

// retireSource ends the instance that lost its right. Its taps stay, and
// forward.
func (m *machine) retireSource(ctx context.Context) *godwitv1.Report {
	if m.runsOn() {
		return pledge.SourceFailed(errRunsOn, false)
	}
	m.awaitCopy(ctx)
	m.keepTaps(m.ports)
	if err := m.kill(ctx); err != nil {
		return pledge.SourceFailed(err, false)
	}
	if err := m.disksOld(true); err != nil {
		return pledge.SourceFailed(err, false)
	}
	return pledge.SourceRetired()
}

// awaitCopy gives the copy the moment it needs to report its measurements.
func (m *machine) awaitCopy(ctx context.Context) {
	m.mu.Lock()
	running := m.copying
	m.mu.Unlock()
	if running == nil {
		return
	}
	running.retire()
	timeout := time.NewTimer(cancelWithin)
	defer timeout.Stop()
	select {
	case <-running.done:
	case <-timeout.C:
		m.endCopy()
	case <-ctx.Done():
	}
}

// releaseSource removes what is left of a source: nobody sends to it any more.
func (m *machine) releaseSource(ctx context.Context) *godwitv1.Report {
	if m.runsOn() {
		return pledge.SourceFailed(errRunsOn, false)
	}
	if err := m.kill(ctx); err != nil {
		return pledge.SourceFailed(err, false)
	}
	if err := m.disksOld(false); err != nil {
		return pledge.SourceFailed(err, false)
	}
	m.leaveBridges(ctx)
	if err := m.discard(ctx); err != nil {
		return pledge.SourceFailed(err, false)
	}
	return pledge.SourceReleased()
}
