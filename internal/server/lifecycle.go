package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// Sequences of the commands of a VM's life cycle within one epoch. A command
// that is sent again has the same one. Every Stop that is asked for is a new
// command, since it may leave the guest less time than the one before.
const (
	sequenceStart     = 1
	sequenceFirstStop = 2
	sequenceForget    = 1 << 32
)

// lookAgainEvery is the pause between looks at a VM for which something could
// not be done, beside the time that the store itself takes to say so.
const lookAgainEvery = 2 * time.Second

// stopAgainEvery is how long a host has for a stop before it is sent again: its
// agent may not have been able to carry it out. One that is still at it does not do
// it twice. A start is not sent again in a session: one that has failed, and whose
// answer is under way, would succeed.
const stopAgainEvery = 20 * time.Second

// lifecycle makes hosts do what the records of VMs say: VMs that are starting
// or stopping have their command sent, after every change of the record and
// after every reconnect, and what hosts report moves the record on. What fails
// in passing is done later: the server looks at the VM again, and lets a host
// say again what it said.
type lifecycle struct {
	tables tables
	mirror *mirror
	hub    *hub
	log    *slog.Logger
	wake   chan struct{}

	mu    sync.Mutex
	leads []store.Condition // hold as long as the term does
	dirty map[fleet.VMName]bool
	told  map[fleet.VMName]order
	again map[fleet.VMName]time.Time // when a stop that was told is told again
	// held are ends of instances that no record tells of yet. Of those whose
	// VM a migration has locked it is only known what they mean when it has
	// ended.
	held map[fleet.VMName]*heldReport
	left map[fleet.VMName][]leftover
}

// order is a command that was sent: the same one is not sent twice to the same
// session, unless it is due again.
type order struct {
	uid      fleet.InstanceUID
	owner    fleet.Owner
	sequence uint64
	session  uint64
}

type heldReport struct {
	host   fleet.HostName
	report *godwitv1.InstanceReport
}

func newLifecycle(t tables, m *mirror, h *hub, log *slog.Logger) *lifecycle {
	return &lifecycle{
		tables: t, mirror: m, hub: h, log: log, wake: make(chan struct{}, 1),
		dirty: map[fleet.VMName]bool{}, told: map[fleet.VMName]order{}, again: map[fleet.VMName]time.Time{},
		held: map[fleet.VMName]*heldReport{}, left: map[fleet.VMName][]leftover{},
	}
}

// begin makes what is decided from now on that of a term, as long as its
// conditions hold.
func (l *lifecycle) begin(leads []store.Condition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leads = leads
}

// commit is the store's, for as long as this server leads: another leader has told
// hosts other things meanwhile, and what was answered here is an old answer.
func (l *lifecycle) commit(ctx context.Context, conditions []store.Condition, ops ...store.Op) error {
	l.mu.Lock()
	conditions = slices.Concat(conditions, l.leads)
	l.mu.Unlock()
	_, err := l.tables.store.Commit(ctx, conditions, ops...)
	return err
}

// changed says that a VM's record or its host's session has changed. It does
// not block.
func (l *lifecycle) changed(name fleet.VMName) {
	l.mu.Lock()
	l.dirty[name] = true
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run looks after changed VMs until ctx ends, and again after those that had to
// wait.
func (l *lifecycle) run(ctx context.Context) {
	again := time.NewTicker(lookAgainEvery)
	defer again.Stop()
	waiting := map[fleet.VMName]bool{}
	for {
		var names map[fleet.VMName]bool
		select {
		case <-l.wake:
			l.mu.Lock()
			names, l.dirty = l.dirty, map[fleet.VMName]bool{}
			l.mu.Unlock()
		case <-again.C:
			names = l.due()
			maps.Copy(names, waiting)
		case <-ctx.Done():
			return
		}
		for name := range names {
			err := l.look(ctx, name)
			if ctx.Err() != nil {
				return
			}
			if err != nil && !waiting[name] {
				l.log.Warn("what a VM needs could not be done", "vm", name, "again", store.Passes(err), "error", err)
			}
			if store.Passes(err) {
				waiting[name] = true
			} else {
				delete(waiting, name)
			}
		}
	}
}

// due gives the VMs whose hosts are to be told again, and makes that what they were
// not told.
func (l *lifecycle) due() map[fleet.VMName]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	names := map[fleet.VMName]bool{}
	for name, at := range l.again {
		if !time.Now().Before(at) {
			names[name] = true
			delete(l.again, name)
			delete(l.told, name)
		}
	}
	return names
}

// look does what a VM's record asks for. After an error that passes it must be
// called again.
func (l *lifecycle) look(ctx context.Context, name fleet.VMName) error {
	return errors.Join(l.tidy(ctx, name), l.moveOn(ctx, name))
}

// moveOn records what is held of a VM, and tells its host what is to be done.
func (l *lifecycle) moveOn(ctx context.Context, name fleet.VMName) error {
	entry, found := l.mirror.vm(name)
	if !found {
		l.mu.Lock()
		delete(l.told, name)
		delete(l.again, name)
		delete(l.held, name)
		l.mu.Unlock()
		return nil
	}
	vm := entry.Value
	if vm.Migration == "" {
		if err := l.settleHeld(ctx, name); err != nil {
			return err
		}
	}
	if vm.Phase == fleet.VMStarting || vm.Phase == fleet.VMStopping {
		return l.tell(ctx, vm.Owner.Host, name)
	}
	return nil
}

// tell sends the host the command of the VM's phase, once in each session, and a
// stop again after a while. The VM is read in the session for which the command is:
// what the host has answered in an earlier one is recorded then. A start that has
// failed would succeed now.
func (l *lifecycle) tell(ctx context.Context, host fleet.HostName, name fleet.VMName) error {
	session := l.hub.number(host)
	if session == 0 {
		return nil // told when the host connects
	}
	entry, err := l.tables.vms.Get(ctx, string(name))
	vm := entry.Value
	switch {
	case fleet.CodeOf(err) == fleet.NotFound:
		return nil
	case err != nil:
		return err
	case vm.Owner.Host != host || vm.Phase != fleet.VMStarting && vm.Phase != fleet.VMStopping:
		return nil // the mirror hears of it
	}
	command, err := l.command(ctx, vm)
	if err != nil {
		return err
	}
	now := order{uid: vm.UID, owner: vm.Owner, sequence: command.GetSequence(), session: session}
	l.mu.Lock()
	same := l.told[vm.Name] == now
	l.mu.Unlock()
	if same {
		return nil
	}
	if err := l.hub.sendIn(session, host, command); err != nil {
		return err
	}
	l.mu.Lock()
	l.told[vm.Name] = now
	delete(l.again, vm.Name)
	if vm.Phase == fleet.VMStopping {
		l.again[vm.Name] = time.Now().Add(stopAgainEvery)
	}
	l.mu.Unlock()
	return nil
}

func (l *lifecycle) command(ctx context.Context, vm fleet.VM) (*godwitv1.Command, error) {
	command := &godwitv1.Command{Subject: string(vm.Name), Epoch: uint64(vm.Owner.Epoch), Uid: string(vm.UID)}
	if vm.Phase == fleet.VMStopping {
		asked, err := l.tables.stops.Get(ctx, string(vm.Name))
		if err != nil {
			return nil, err
		}
		command.Sequence = asked.Value.Sequence
		command.Op = &godwitv1.Command_StopInstance{StopInstance: &godwitv1.StopInstance{
			Vm: string(vm.Name), GraceMs: asked.Value.Grace.Milliseconds(),
		}}
		return command, nil
	}
	networks, err := reconcile.PortNetworks(ctx, l.tables.networks, vm.Spec)
	if err != nil {
		return nil, err
	}
	command.Sequence = sequenceStart
	command.Op = &godwitv1.Command_StartInstance{StartInstance: &godwitv1.StartInstance{Instance: &godwitv1.Instance{
		Vm: string(vm.Name), Uid: string(vm.UID), Epoch: uint64(vm.Owner.Epoch),
		Spec: wire.EncodeSpec(vm.Spec), Networks: networks,
	}}}
	return command, nil
}

// connected compares what a host has with what the records say.
func (l *lifecycle) connected(ctx context.Context, host fleet.HostName, at arrival, hello *godwitv1.Hello) {
	ctx = context.WithoutCancel(ctx)
	for _, one := range at.ended {
		l.hold(host, &godwitv1.InstanceReport{
			Vm: string(one.VM), Uid: string(one.UID), Epoch: uint64(one.Epoch), State: instanceExited, Cause: rebootCause(host),
		})
	}
	for _, entry := range l.mirror.vmsOf(host) {
		vm := entry.Value
		l.changed(vm.Name)
		if vm.Phase != fleet.VMRunning || hasInstance(hello, vm) || slices.Contains(at.ended, instanceOf(vm)) {
			continue
		}
		if !l.taken(host, &godwitv1.InstanceReport{Vm: entry.Name}, l.unknown(ctx, vm)) {
			return // the next Hello says all of it again
		}
	}
	for _, instance := range hello.GetInstances() {
		said := l.explained(host, instance, at.rebooted)
		err := l.observe(ctx, host, said, 0)
		if err == nil {
			err = l.endStray(ctx, host, said)
		}
		if !l.taken(host, said, err) {
			return
		}
	}
}

// explained gives a cause to the end of a running instance that nobody has
// seen. Without one it would count as the guest's own powering off.
func (l *lifecycle) explained(host fleet.HostName, said *godwitv1.InstanceReport, rebooted bool) *godwitv1.InstanceReport {
	entry, _ := l.mirror.vm(fleet.VMName(said.GetVm()))
	if said.GetState() != instanceExited || said.GetCause() != "" || entry.Value.Phase != fleet.VMRunning {
		return said
	}
	cause := "it ended while host " + string(host) + " had no session"
	if rebooted {
		cause = rebootCause(host)
	}
	return &godwitv1.InstanceReport{
		Vm: said.GetVm(), Uid: said.GetUid(), Epoch: said.GetEpoch(), State: said.GetState(), Migration: said.GetMigration(),
		Cause: cause,
	}
}

func hasInstance(hello *godwitv1.Hello, vm fleet.VM) bool {
	return slices.ContainsFunc(hello.GetInstances(), func(i *godwitv1.InstanceReport) bool {
		return i.GetVm() == string(vm.Name) && fleet.Epoch(i.GetEpoch()) == vm.Owner.Epoch
	})
}
