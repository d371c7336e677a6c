package agent

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/qmp"
)

// machine is one instance with all that belongs to it on this host.
type machine struct {
	agent *Agent
	key   machineKey
	uid   fleet.InstanceUID // "" while its record can't be read
	dir   string
	life  context.Context // until the agent ends or has forgotten it
	leave context.CancelFunc
	work  chan func()   // commands, one after the other
	gone  chan struct{} // closed when the agent has forgotten it
	alone chan struct{} // a migration has ended here
	keys  keyboard      // of its serial console

	measured measured // of its guest

	// The worker, which is carryOut's goroutine, changes what follows with mu
	// held. It may read record, instance and ports without; so may what it has
	// started since and will wait for, such as a copy, of the instance. All
	// others take mu, held for the instance, and allPorts for the ports.
	mu        sync.Mutex
	record    record                // what a later agent needs to know
	instance  *qemu.Instance        // nil before its start
	ports     []*port               // in the order of the spec
	told      pledge.Log            // what it was told to do
	facts     []*godwitv1.Report    // told again when a session begins
	unadopted error                 // why it could not be taken over, if so
	unread    bool                  // its record could not be read: only its key is known
	halted    string                // why its guest can't run on, if so
	endCause  string                // of an instance that has ended
	ending    bool                  // its end is wanted: no news
	hurry     chan struct{}         // closed when a stop must not wait for the guest
	marks     *godwitv1.TargetMarks // of a target that has the source's state
	receives  bool                  // a target whose taps take the VM's frames
	outlives  *qemu.Instance        // whose disks' errors are looked after
	launching bool                  // the instance is being started
	lockless  bool                  // a target that may have tried to run, and lacked a lock; the worker's
	mayWrite  bool                  // its leases of volumes may have been activated
	leaving   bool                  // its taps want no frames any more
	copying   *copying              // of a migration away from here
	decided   context.CancelFunc    // ends the wait for a decision on a switch; nil without one

	exports      sync.Mutex // held while a target's disks are taken back
	exportsEnded bool       // and that was done

	catching sync.Mutex // held while a target catches up with its source
}

// The roles, by short names.
const (
	alone    = pledge.Alone
	source   = pledge.Source
	ranOn    = pledge.RanOn
	arriving = pledge.Arriving
	arrived  = pledge.Arrived
	refused  = pledge.Refused
)

const machineQueue = 64

func (a *Agent) newMachine(key machineKey, uid fleet.InstanceUID) *machine {
	return &machine{
		agent: a, key: key, uid: uid, dir: a.instanceDir(key), work: make(chan func(), machineQueue), gone: make(chan struct{}),
		record: record{VM: key.vm, UID: uid, Epoch: key.epoch, Role: alone},
		hurry:  make(chan struct{}), alone: make(chan struct{}, 1),
	}
}

// start begins to carry out what is queued.
func (a *Agent) start(ctx context.Context, m *machine) {
	m.life, m.leave = context.WithCancel(ctx)
	first := m.watch()
	if m.unadopted != nil {
		go m.adoptLater(m.life)
	}
	a.workers.Go(func() {
		first()
		m.carryOut(ctx)
	})
}

// watch follows what an instance does that the machine has, and takes up what
// its part is. What of that is the worker's, the worker does by first, before
// any command: it can't queue that for itself, since nobody else makes room.
func (m *machine) watch() (first func()) {
	m.mu.Lock()
	instance, part, migration := m.instance, m.record.Role, m.record.Migration
	m.mu.Unlock()
	if instance != nil {
		go m.watchEnd(m.life, instance)
		go m.outliveErrors(m.life, instance)
		go m.followCards(m.life, instance)
	}
	switch {
	case part == refused:
		m.tellRefused(migration)
		return func() {
			// An earlier agent may have tried to run it, and nobody wrote down that it has a lock.
			m.lockless = instance != nil && len(m.images()) > 0
			if err := m.endRefused(m.life); err != nil {
				m.agent.log.Error("a target that has given up was not ended", "vm", m.key.vm, "error", err)
			}
		}
	case instance == nil:
	case part == arriving:
		go m.arriveAgain(m.life, migration)
	case part == arrived:
		m.agent.workers.Go(func() { m.announceArrival(m.life) }) // it looks at gates
		go m.tellMachine(m.life, instance, migration)
	case part == source:
		if state, err := instance.Status(m.life); err != nil || !state.Running() {
			m.awaitDecision()
		}
	case part == ranOn:
		m.tellRanOn(migration)
		return func() {
			if err := m.goOn(m.life); err != nil {
				m.agent.log.Error("the source does not run on yet", "vm", m.key.vm, "error", err)
				m.awaitDecision() // asked again, the target says the same, and it is tried again
				return
			}
			m.awaitFrames()
		}
	}
	return func() {}
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
	facts, gone := m.facts, m.goneCards()
	m.mu.Unlock()
	for _, report := range facts {
		m.agent.say(report)
	}
	for _, slot := range gone {
		m.agent.say(m.goneReport(slot))
	}
}

// clearFacts forgets the news of a migration that has ended here.
func (m *machine) clearFacts() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts = nil
}

// watchEnd reports the end of an instance that nobody here wanted to end. One
// that only its monitor was lost of is taken over anew.
func (m *machine) watchEnd(ctx context.Context, instance *qemu.Instance) {
	cause, ended, lost := awaitEnd(ctx, instance)
	if lost != nil {
		m.rejoin(ctx, instance, lost)
	}
	if ended {
		m.tellEnd(ctx, cause)
	}
}

// tellEnd reports that the instance has ended.
func (m *machine) tellEnd(ctx context.Context, cause string) {
	m.mu.Lock()
	wanted, migration, part := m.ending, m.record.Migration, m.record.Role
	m.endCause = cause
	m.mu.Unlock()
	if wanted {
		return
	}
	m.agent.log.Warn("an instance ended", "vm", m.key.vm, "epoch", m.key.epoch, "cause", cause)
	switch part {
	case source, ranOn:
		m.decide()
		m.fact(migration, pledge.SourceFailed(errors.New(cause), true))
	case arriving, arrived:
		m.fact(migration, m.targetGone(ctx, cause))
	}
	if part != arriving {
		m.fact(string(m.key.vm), m.instanceReport(fleet.InstanceExited, cause))
	}
}

// awaitEnd waits for the end of an instance and gives its cause: what QEMU said
// of a shutdown, such as "guest-shutdown", or else how its process ended. lost is
// why the monitor of an instance that runs on has ended.
func awaitEnd(ctx context.Context, instance *qemu.Instance) (cause string, ended bool, lost error) {
	events := instance.Subscribe()
	defer events.Close()
	for {
		select {
		case event, open := <-events.Events():
			if !open {
				if monitorLost(ctx, instance, events.Err()) {
					return "", false, events.Err()
				}
				select {
				case <-instance.Exited():
					return cmp.Or(cause, instance.ExitCause()), true, nil
				case <-ctx.Done():
					return "", false, nil
				}
			}
			if event.Kind == qemu.Shutdown {
				cause = event.Reason
			}
		case <-ctx.Done():
			return "", false, nil
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

// held gives the instance as it is now, to any goroutine.
func (m *machine) held() *qemu.Instance {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instance
}

// setRole changes the machine's part and writes it down first.
func (m *machine) setRole(part pledge.Role, migration string) error {
	next := m.record
	next.Role, next.Migration = part, migration
	return m.note(next)
}

// note writes a new record and then has it. Only the worker does, so that
// nobody waits for the disk with mu held.
func (m *machine) note(next record) error {
	if err := writeRecord(m.dir, next); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
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

// kept is what a command is held against that may be for the machine.
func (m *machine) kept() pledge.Kept {
	m.mu.Lock()
	defer m.mu.Unlock()
	return pledge.Kept{
		Role: m.record.Role, Migration: m.record.Migration,
		Started: m.unadopted != nil || m.instance != nil, Ended: m.hasEnded(), Unread: m.unread,
	}
}
