package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

// runWithin bounds the start of a target's vCPUs.
const runWithin = 10 * time.Second

// prepareTarget makes the ports, starts the instance that waits for state, and
// arms its taps: frames that the source will send are kept from then on, and
// all others are still kept out.
func (m *machine) prepareTarget(ctx context.Context, migration string, want *godwitv1.PrepareTarget) *godwitv1.Report {
	if m.record.Role == arrived {
		return nil // an old command to a new agent: the guest runs, and must not be touched
	}
	bounded, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	listening, seen, err := m.prepare(bounded, migration, want)
	var disks uint16
	if err == nil {
		disks, err = m.export(bounded, want)
	}
	if err == nil { // last, and with a bound of its own: it can take longer than all before
		err = m.awaitForwarding()
	}
	if err != nil {
		err = errors.Join(err, m.discard(ctx))
		return pledge.TargetFailed(err, m.hasEnded())
	}
	can := m.instance.Abilities()
	return &godwitv1.Report{Event: &godwitv1.Report_TargetPrepared{TargetPrepared: &godwitv1.TargetPrepared{
		Port: uint32(listening), QemuVersion: can.Version, MigrationCapabilities: can.Capabilities, DiskPort: uint32(disks),
		SourceMachine: wire.EncodeMachine(seen),
	}}}
}

// prepare gives the port at which the instance waits, and the source's machine, nil if
// that was not compared.
func (m *machine) prepare(ctx context.Context, migration string, want *godwitv1.PrepareTarget) (uint16, fleet.Machine, error) {
	// An earlier agent may have done it, and nobody heard its answer.
	adopted := m.instance != nil && !m.instance.Ended()
	source := fleet.HostName(want.GetSource())
	if !adopted {
		m.mu.Lock()
		m.record.Role, m.record.Migration, m.record.Peer = arriving, migration, peerRecord{Host: source}
		m.mu.Unlock()
	}
	seen, err := m.lookAtSource(ctx, want)
	if err == nil && !adopted {
		err = m.launch(ctx, want.GetInstance(), network.Gate{Mode: network.Closed, Epoch: m.key.epoch}, nil)
	}
	if err == nil {
		err = m.compareMachine(ctx, source, seen)
	}
	if err != nil {
		return 0, nil, err
	}
	if adopted {
		if listening, err := m.instance.Port(ctx); err == nil {
			if m.armed() {
				return listening, seen, nil
			}
			return listening, seen, m.arm(ctx)
		}
	}
	listening, err := m.listen(ctx, migration, want, adopted)
	return listening, seen, err
}

// listen has the instance wait for state, and arms the taps; adopted says that an
// earlier agent has started it.
func (m *machine) listen(ctx context.Context, migration string, want *godwitv1.PrepareTarget, adopted bool) (uint16, error) {
	in, err := m.incoming(want)
	if err != nil {
		return 0, err
	}
	events := m.instance.Subscribe()
	listening, err := m.instance.Listen(ctx, in)
	if err != nil {
		return 0, err
	}
	if err := m.arm(ctx); err != nil {
		return 0, err
	}
	if adopted { // its arrival is waited for since the adoption
		events.Close()
	} else {
		go m.arrive(m.life, migration, m.instance, events)
	}
	return listening, nil
}

// incoming says where the target listens: to its source only.
func (m *machine) incoming(want *godwitv1.PrepareTarget) (qemu.Incoming, error) {
	creds, err := m.credentials()
	peer := pki.Identity{Kind: pki.Host, Name: want.GetSource()}
	return qemu.Incoming{
		Listen: m.agent.config.Address, CredsDir: creds, PeerName: peer.DistinguishedName(), Connections: int(want.GetConnections()),
	}, err
}

// arriveAgain takes a target up that an earlier agent has prepared.
func (m *machine) arriveAgain(ctx context.Context, migration string) {
	instance := m.held()
	if instance == nil { // lost again: whoever takes it over anew comes here, too
		return
	}
	events := instance.Subscribe()
	now, err := instance.Progress(ctx)
	if err == nil && now.Status == qemu.StatusCompleted {
		events.Close()
		late := timestamppb.Now()
		m.ready(ctx, migration, &godwitv1.TargetMarks{Loaded: late, Asked: late}, m.openCommit(ctx, migration, 0))
		return
	}
	m.arrive(ctx, migration, instance, events)
}

// arm opens the tunnels to the taps and lets in what comes by them. QEMU drops
// the first frame that it pulls before it has loaded, so it gets a dummy.
func (m *machine) arm(ctx context.Context) error {
	var errs []error
	for _, port := range m.ports {
		errs = append(errs, m.agent.config.Network.OpenTunnel(port.Tunnel, port.tap), port.tap.Sacrifice())
	}
	for _, port := range m.ports {
		// Of several queues only the first is QEMU's before it has loaded, and
		// of that it takes one frame; the guest drops the others.
		if len(port.tap.FDs()) == 1 {
			errs = append(errs, port.tap.WaitEmpty(ctx))
		}
	}
	return errors.Join(append(errs, m.setMode(network.TunnelOnly))...)
}

// armed: that was done to the end, and perhaps more since.
func (m *machine) armed() bool {
	for _, port := range m.ports {
		gate, err := port.tap.Gate()
		if err != nil {
			return false
		}
		switch gate.Mode {
		case network.TunnelOnly, network.Arriving, network.Settling:
		default:
			return false
		}
	}
	return true
}

// credentials writes this host's certificate where the instance's QEMU reads
// it: once, at the start of a migration.
func (m *machine) credentials() (string, error) {
	dir := filepath.Join(m.dir, "tls")
	return dir, m.agent.config.Keeper.Credentials().WriteQEMUCreds(dir)
}

// arrive waits until the state has been loaded, asks for the commit and runs.
// The instance is the one that it was with: one whose monitor is lost meanwhile is
// taken over anew.
func (m *machine) arrive(ctx context.Context, migration string, instance *qemu.Instance, events *qemu.Subscription) {
	defer events.Close()
	m.warmVolumes(ctx)
	line := m.openCommit(ctx, migration, 0)
	loaded, err := waitLoaded(events)
	if err != nil {
		line.close()
		if m.isEnding() || endedWith(instance, err) { // watchEnd says it
			return
		}
		m.fact(migration, pledge.TargetFailed(err, false))
		return
	}
	instance.NoteLoaded()
	go m.endExportsEarly(ctx, instance)
	m.ready(ctx, migration, &godwitv1.TargetMarks{Loaded: timestamppb.New(loaded)}, line)
}

// endExportsEarly does so while the commit is asked for; what fails is tried again
// before the guest runs.
func (m *machine) endExportsEarly(ctx context.Context, instance *qemu.Instance) {
	if err := m.endExports(ctx, instance); err != nil {
		m.agent.log.Warn("the disks are not taken back yet", "vm", m.key.vm, "error", err)
	}
}

// ready has the state, since when marks says: it lets frames come, unless that was
// done when the source stopped, and asks for the commit.
func (m *machine) ready(ctx context.Context, migration string, marks *godwitv1.TargetMarks, line *commitLine) {
	m.mu.Lock()
	m.marks = marks
	m.mu.Unlock()
	if err := m.receiveInTurn(); err != nil {
		line.close()
		if !errors.Is(err, errGone) {
			m.fact(migration, pledge.TargetFailed(err, false))
		}
		return
	}
	m.askCommit(ctx, migration, line)
}

// errGone: the agent has forgotten the machine.
var errGone = errors.New("the machine is gone")

// receiveInTurn lets frames come, in turn with the commands: a release must not
// meet it half-way.
func (m *machine) receiveInTurn() error {
	m.mu.Lock()
	done := m.receives && !m.ending
	m.mu.Unlock()
	if done {
		return nil
	}
	return m.inTurn(context.Background(), m.receive)
}

// receive makes the host's own overlays send the VM's frames into its taps:
// as soon as it owns the VM, other hosts may send them here directly. Once it
// does, or the guest runs, there is nothing left to do.
func (m *machine) receive() error {
	m.mu.Lock()
	done, ending := m.receives || m.record.Role != arriving, m.ending
	m.mu.Unlock()
	switch {
	case ending:
		return &fleet.Error{Code: fleet.Conflict, Op: "take over", Subject: "vm " + string(m.key.vm), Cause: "the target is being released"}
	case done:
		return nil
	}
	state, err := m.instance.Status(m.life)
	if err != nil {
		return err
	}
	// A map that is being applied must not take back what is claimed here.
	m.agent.addressMu.Lock()
	defer m.agent.addressMu.Unlock()
	m.setReceives(true)
	var errs []error
	if !state.Running() { // by an earlier agent, whose record does not say so yet
		errs = append(errs, m.setMode(network.Arriving))
	}
	for _, port := range m.ports {
		errs = append(errs, port.tap.Claim())
	}
	if err := errors.Join(errs...); err != nil {
		m.setReceives(false)
		return err
	}
	return nil
}

func (m *machine) setReceives(receives bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.receives = receives
}

func waitLoaded(events *qemu.Subscription) (time.Time, error) {
	for event := range events.Events() {
		if event.Kind != qemu.MigrationChanged {
			continue
		}
		switch event.Status {
		case qemu.StatusCompleted:
			return event.At, nil
		case qemu.StatusFailed:
			return time.Time{}, &fleet.Error{Code: fleet.Failed, Op: "load", Cause: "the target's QEMU could not take the state", Hint: "its log says why"}
		}
	}
	return time.Time{}, fmt.Errorf("wait for the state: %w", events.Err())
}

func (m *machine) isEnding() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ending
}

// runTarget activates the leases of volumes, opens the gate and starts the vCPUs. It
// is called only with the right to do so. As long as the gate is closed, the target
// is known never to have run.
func (m *machine) runTarget(ctx context.Context, volumeKey []byte) *godwitv1.Report {
	answered := timestamppb.Now()
	ctx, cancel := context.WithTimeout(ctx, runWithin)
	defer cancel()
	m.mu.Lock()
	part, before := m.record.Role, m.marks
	m.mu.Unlock()
	switch part.Run() {
	case pledge.RunNow:
	case pledge.RunNever:
		return pledge.TargetRefused(pledge.ErrGaveUp.Error())
	default: // it runs already
		return &godwitv1.Report{Event: &godwitv1.Report_TargetRunning{TargetRunning: &godwitv1.TargetRunning{Marks: before}}}
	}
	if m.instance == nil || m.instance.Ended() { // between two agents
		return m.targetGone(ctx, "its instance has ended")
	}
	if m.looksForLocks() {
		if waits := m.imageWait(ctx); waits != nil {
			return waits
		}
	}
	m.setVolumeKey(volumeKey)
	if err := m.activate(ctx, m.key.epoch); err != nil {
		return pledge.TargetFailed(err, m.instance.Ended())
	}
	if err := m.endExports(ctx, m.instance); err != nil {
		return pledge.TargetFailed(err, m.instance.Ended())
	}
	if err := errors.Join(m.receive(), m.setMode(network.Settling)); err != nil {
		return pledge.TargetFailed(err, false)
	}
	resumed, err := m.instance.Resume(ctx)
	if err != nil {
		return m.notResumed(ctx, err)
	}
	m.mu.Lock()
	if m.marks == nil { // of an agent that ended since
		m.marks = &godwitv1.TargetMarks{Loaded: answered, Asked: answered}
	}
	m.marks.Answered, m.marks.Resumed = answered, timestamppb.New(resumed)
	marks, migration := proto.CloneOf(m.marks), m.record.Migration
	m.mu.Unlock()
	if err := errors.Join(m.disksRan(), m.setRole(arrived, migration)); err != nil {
		m.agent.log.Error("the machine's record was not written", "vm", m.key.vm, "error", err)
	}
	m.agent.workers.Go(func() { m.announceArrival(m.life) })
	go m.tellMachine(m.life, m.instance, migration)
	return &godwitv1.Report{Event: &godwitv1.Report_TargetRunning{TargetRunning: &godwitv1.TargetRunning{Marks: marks}}}
}

// targetGone reports the end of an instance, and whether it may have run.
func (m *machine) targetGone(ctx context.Context, cause string) *godwitv1.Report {
	return pledge.TargetGone(errors.New(cause), m.mayHaveRun(ctx))
}

// finishTarget ends the special treatment of forwarded frames. The tunnels go first: a
// source that was given up may still forward what comes directly, too.
func (m *machine) finishTarget() *godwitv1.Report {
	var errs []error
	for _, port := range m.ports {
		errs = append(errs, m.agent.config.Network.CloseTunnel(port.Tunnel))
		port.Tunnel = 0
	}
	errs = append(errs, m.setMode(network.Pass), m.stopExporting())
	if err := errors.Join(append(errs, m.disksRan(), m.olderDisksGo(), m.setRole(alone, ""))...); err != nil {
		return pledge.TargetFailed(err, false)
	}
	m.clearFacts()
	m.aloneAgain()
	return pledge.TargetFinished()
}

// releaseTarget undoes the preparation. Frames that waited here go back to the
// source, whose gate is open again: before QEMU ends, which has the taps' queues,
// too, if this agent dies meanwhile, and what has come since after its end.
func (m *machine) releaseTarget(ctx context.Context, want *godwitv1.ReleaseTarget) *godwitv1.Report {
	neverRan, claimed := m.neverRan(ctx), m.claimed() // which its instance and its gates tell as yet
	if want.GetReturnFrames() {
		m.agent.awaitPath(ctx, peerAddress(want.GetSourceAddress(), want.GetSourcePeerPort()))
	}
	frames, lost := m.returnFrames(ctx, want)
	m.keepTaps(m.ports)
	if err := m.kill(ctx); err != nil {
		return pledge.TargetFailed(err, false)
	}
	if err := m.unclaim(); err != nil {
		m.agent.log.Error("addresses could not be pointed back", "vm", m.key.vm, "error", err)
	}
	if claimed {
		m.yieldBridges(ctx)
	}
	late, lostLate := m.returnFrames(ctx, want)
	if err := errors.Join(m.dropDisks(neverRan), m.discard(ctx)); err != nil {
		return pledge.TargetFailed(err, false)
	}
	return pledge.TargetReleased(frames+late, errors.Join(lost, lostLate))
}

func (m *machine) returnFrames(ctx context.Context, want *godwitv1.ReleaseTarget) (frames int, lost error) {
	if !want.GetReturnFrames() {
		return 0, nil
	}
	if frames, lost = m.drainTo(ctx, want.GetSourceAddress()); lost != nil {
		m.agent.log.Error("frames could not be returned", "vm", m.key.vm, "error", lost)
	}
	return frames, lost
}
