package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/qmp"
)

// machine is one instance with all that belongs to it on this host.
type machine struct {
	agent *Agent
	key   machineKey
	dir   string
	work  chan func()   // commands, one after the other
	gone  chan struct{} // closed when the agent has forgotten it

	mu        sync.Mutex
	record    record                      // what a later agent needs to know
	instance  *qemu.Instance              // nil before its start and after its end
	ports     []*port                     // in the order of the spec
	answers   map[string]*godwitv1.Report // by the command's tag
	begun     map[string]bool             // commands that are being carried out
	facts     []*godwitv1.Report          // told again when a session begins
	unadopted error                       // why it could not be taken over, if so
	endCause  string                      // of an instance that has ended
	ending    bool                        // its end is wanted: no news
	hurry     chan struct{}               // closed when a stop must not wait for the guest
	marks     *godwitv1.TargetMarks       // of a target that has the source's state
	leaving   bool                        // its taps want no frames any more
	copying   *copying                    // of a migration away from here
}

// port is a VM's network interface on this host.
type port struct {
	name    string
	network fleet.NetworkName
	mac     string
	tunnel  fleet.TunnelID // zero outside a migration
	tap     *network.Tap
}

// role is a machine's part.
type role string

const (
	alone    role = "alone"    // the only instance
	source   role = "source"   // of a migration; its gate may be closed
	arriving role = "arriving" // target before the commit
	arrived  role = "arrived"  // target after it
)

// record is what is written to the machine's folder, so that an agent that
// starts again knows what it has there.
type record struct {
	VM        fleet.VMName      `json:"vm"`
	UID       fleet.InstanceUID `json:"uid"`
	Epoch     fleet.Epoch       `json:"epoch"`
	Role      role              `json:"role"`
	Migration string            `json:"migration,omitempty"`
	Ports     []portRecord      `json:"ports"`
}

type portRecord struct {
	Name    string            `json:"name"`
	Network fleet.NetworkName `json:"network"`
	MAC     string            `json:"mac"`
	Tap     string            `json:"tap"`
	Queues  int               `json:"queues"`
	MTU     int               `json:"mtu"`
	Tunnel  fleet.TunnelID    `json:"tunnel,omitempty"`
}

const machineQueue = 64

func (a *Agent) newMachine(key machineKey, uid fleet.InstanceUID) *machine {
	return &machine{
		agent: a, key: key, dir: a.instanceDir(key), work: make(chan func(), machineQueue), gone: make(chan struct{}),
		record:  record{VM: key.vm, UID: uid, Epoch: key.epoch, Role: alone},
		answers: map[string]*godwitv1.Report{}, begun: map[string]bool{},
		hurry: make(chan struct{}),
	}
}

// start begins to carry out what is queued.
func (a *Agent) start(ctx context.Context, m *machine) {
	go m.carryOut(ctx)
	m.watch(ctx)
}

// watch follows what an instance does that the machine has.
func (m *machine) watch(ctx context.Context) {
	m.mu.Lock()
	instance, part := m.instance, m.record.Role
	m.mu.Unlock()
	if instance == nil {
		return
	}
	go m.watchEnd(ctx, instance)
	if part == arriving {
		go m.arriveAgain(ctx)
	}
}

// carryOut carries out what is queued, until the machine is gone and nothing
// is left. What is queued later the server asks for again.
func (m *machine) carryOut(ctx context.Context) {
	for {
		select {
		case task := <-m.work:
			task()
			continue
		case <-ctx.Done():
			return
		case <-m.gone:
		}
		select {
		case task := <-m.work:
			task()
		default:
			return
		}
	}
}

// do queues a command, unless it has been answered or begun before.
func (m *machine) do(command *godwitv1.Command, task func() *godwitv1.Report) {
	tag := tagOf(command)
	m.mu.Lock()
	answer, begun := m.answers[tag], m.begun[tag]
	m.begun[tag] = true
	m.mu.Unlock()
	switch {
	case answer != nil:
		m.agent.say(answer)
		return
	case begun:
		return
	}
	select {
	case m.work <- func() {
		if err := m.adoptAgain(); err != nil {
			m.agent.log.Error("a command waits until its instance is adopted", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
			m.mu.Lock()
			delete(m.begun, tag)
			m.mu.Unlock()
			return
		}
		if report := task(); report != nil {
			m.answer(command, report)
		}
	}:
	default:
		m.mu.Lock()
		delete(m.begun, tag)
		m.mu.Unlock()
		m.agent.log.Error("too many commands wait", "vm", m.key.vm, "epoch", m.key.epoch)
	}
}

// adoptAgain tries what an adoption before has failed to do.
func (m *machine) adoptAgain() error {
	m.mu.Lock()
	failed := m.unadopted
	m.mu.Unlock()
	if failed == nil {
		return nil
	}
	ctx := context.Background() // it goes on as long as the agent
	if err := m.adopt(ctx); err != nil {
		return err
	}
	m.watch(ctx)
	return nil
}

// answer reports the end of a command. One that failed may be tried again by
// the same sequence.
func (m *machine) answer(command *godwitv1.Command, report *godwitv1.Report) {
	report.Subject, report.Epoch, report.Sequence = command.GetSubject(), command.GetEpoch(), command.GetSequence()
	report.At = timestamppb.Now() // and not when a session takes it
	m.mu.Lock()
	if failed(report) {
		delete(m.begun, tagOf(command))
		report.Sequence = 0
	} else {
		m.answers[tagOf(command)] = report
	}
	m.mu.Unlock()
	m.agent.say(report)
}

// tagOf tells commands apart: sequences count within a subject.
func tagOf(command *godwitv1.Command) string {
	return fmt.Sprintf("%s/%d/%T", command.GetSubject(), command.GetSequence(), command.GetOp())
}

func failed(report *godwitv1.Report) bool {
	return report.GetSourceFailed() != nil || report.GetTargetFailed() != nil
}

// fact reports something that nobody asked for, and keeps it for later
// sessions.
func (m *machine) fact(subject string, report *godwitv1.Report) {
	report.Subject, report.Epoch, report.At = subject, uint64(m.key.epoch), timestamppb.Now()
	m.mu.Lock()
	m.facts = append(m.facts, report)
	m.mu.Unlock()
	m.agent.say(report)
}

func (m *machine) tellFacts() {
	m.mu.Lock()
	facts := m.facts
	m.mu.Unlock()
	for _, report := range facts {
		m.agent.say(report)
	}
}

// clearFacts forgets the news of a migration that has ended here.
func (m *machine) clearFacts() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts = nil
}

// watchEnd reports the end of an instance that nobody here wanted to end.
func (m *machine) watchEnd(ctx context.Context, instance *qemu.Instance) {
	cause, ended := awaitEnd(ctx, instance)
	if !ended {
		return
	}
	m.mu.Lock()
	wanted, migration, part := m.ending, m.record.Migration, m.record.Role
	m.endCause = cause
	m.mu.Unlock()
	if wanted {
		return
	}
	m.agent.log.Warn("an instance ended", "vm", m.key.vm, "epoch", m.key.epoch, "cause", cause)
	switch part {
	case source:
		m.fact(migration, sourceFailed(errors.New(cause), true))
	case arriving, arrived:
		m.fact(migration, targetFailed(errors.New(cause), true))
	}
	if part != arriving {
		m.fact(string(m.key.vm), m.instanceReport("exited", cause))
	}
}

// awaitEnd waits for the end of an instance and gives its cause: what QEMU said
// of a shutdown, such as "guest-shutdown", or else how its process ended.
func awaitEnd(ctx context.Context, instance *qemu.Instance) (cause string, ended bool) {
	events := instance.Subscribe()
	defer events.Close()
	for {
		select {
		case event, open := <-events.Events():
			if !open {
				select {
				case <-instance.Exited():
					return cmp.Or(cause, instance.ExitCause()), true
				case <-ctx.Done():
					return "", false
				}
			}
			if event.Kind == qemu.Shutdown {
				cause = event.Reason
			}
		case <-ctx.Done():
			return "", false
		}
	}
}

// endWithin is how long after its monitor's end the end of a QEMU may be seen.
const endWithin = time.Second

// endedWith tells whether a failed step failed because the instance has ended.
// The monitor closes a moment before the process can be seen to end.
func endedWith(instance *qemu.Instance, err error) bool {
	if !errors.Is(err, qmp.ErrGone) {
		return instance.Ended()
	}
	limit := time.NewTimer(endWithin)
	defer limit.Stop()
	select {
	case <-instance.Exited():
		return true
	case <-limit.C:
		return false
	}
}

func (m *machine) instanceReport(state, cause string) *godwitv1.Report {
	return &godwitv1.Report{Epoch: uint64(m.key.epoch), Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
		Vm: string(m.key.vm), Uid: string(m.record.UID), Epoch: uint64(m.key.epoch), State: state, Cause: cause,
	}}}
}

// inventory is what Hello says of the machine.
func (m *machine) inventory() *godwitv1.InstanceReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	state := "running"
	switch {
	case m.unadopted != nil: // nobody can tell; the server must not think it gone
	case m.instance == nil || m.instance.Ended():
		state = "exited"
	case m.record.Role == arriving:
		state = "incoming"
	case m.record.Role == source:
		state = "paused" // or still running: the server must not rely on it
	}
	return &godwitv1.InstanceReport{
		Vm: string(m.key.vm), Uid: string(m.record.UID), Epoch: uint64(m.key.epoch),
		State: state, Migration: m.record.Migration, Cause: m.endCause,
	}
}

// setRole changes the machine's part and writes it down first.
func (m *machine) setRole(part role, migration string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.record
	next.Role, next.Migration = part, migration
	if err := writeRecord(m.dir, next); err != nil {
		return err
	}
	m.record = next
	return nil
}

// letGo closes what this process holds of the machine.
func (m *machine) letGo() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, port := range m.ports {
		if port.tap != nil {
			errs = append(errs, port.tap.Close())
		}
	}
	if m.instance != nil {
		errs = append(errs, m.instance.Close())
	}
	return errors.Join(errs...)
}

// setGates sets the gate of every port; rule gives it.
func (m *machine) setGates(rule func(*port) network.Gate) error {
	var errs []error
	for _, port := range m.ports {
		gate := rule(port)
		gate.Epoch = m.key.epoch
		errs = append(errs, port.tap.SetGate(gate))
	}
	return errors.Join(errs...)
}

// setMode sets the gate of every port to a mode without a remote.
func (m *machine) setMode(mode network.Mode) error {
	return m.setGates(func(*port) network.Gate { return network.Gate{Mode: mode} })
}
