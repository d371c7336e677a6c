package sim

import (
	"slices"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

// agent is the agent of one host: what it may do follows from package pledge, as
// in the real one; the order in which it does it is written here once more,
// without the wire and the kernel.
type agent struct {
	*host
	proc                      *proc
	keepers                   []*keeper
	session                   *session
	lostSession, sessionBegan time.Duration
	noSession                 func(any) // called when there is none any more
	mapped                    int64     // version of the addresses that are set
	server                    int       // that it tries next
}

// keeper is what an agent holds of one machine: gone with the agent.
type keeper struct {
	*agent
	m         *machine
	told      pledge.Log
	facts     []*godwitv1.Report
	work      mailbox[func()]
	gone      bool
	ending    bool
	receives  bool
	leaving   bool
	endCause  string    // of an instance that has ended
	launching bool      // the instance is being started
	hurry     bool      // a stop must not wait for the guest
	hurried   func(any) // called when that is so
	copying   *task
	copied    func(any) // called when the copy ends
	asking    *task
}

func newAgent(h *host) *agent { return &agent{host: h, proc: newProc("agent of " + string(h.name))} }

// start begins a process that adopts what is there.
func (a *agent) start() {
	a.proc.begin()
	a.tell("%s starts", a.proc.name)
	a.keepers, a.session = nil, nil
	for _, m := range slices.Clone(a.machines) {
		if m.folder == nil { // a start that had not come to its first port
			m.untap(true)
			a.remove(m)
			continue
		}
		a.keep(m).takeUp()
	}
	a.spawn(a.proc, a.keepSession)
}

// crashed is the end of the process, as others see it.
func (a *agent) crashed() {
	for _, m := range a.machines {
		if m.q != nil {
			m.q.listen = nil
		}
	}
	if a.session != nil {
		a.session.lostBy(a.node)
	}
	a.session, a.lostSession = nil, a.now
}

func (a *agent) keeper(m *machine) *keeper {
	return firstOf(a.keepers, func(k *keeper) bool { return k.m == m })
}

// keep begins to carry out what is told of a machine.
func (a *agent) keep(m *machine) *keeper {
	k := &keeper{agent: a, m: m}
	a.keepers = append(a.keepers, k)
	if m.q != nil {
		m.q.listen = k.died
	}
	a.spawn(a.proc, k.carryOut)
	return k
}

func (a *agent) forget(k *keeper) {
	a.keepers = slices.DeleteFunc(a.keepers, func(one *keeper) bool { return one == k })
	k.gone = true
	k.work.ring()
}

// carryOut does what is queued, one after the other.
func (k *keeper) carryOut() {
	for {
		task, some := k.work.next(k.loop, func() bool { return k.gone })
		if !some {
			return
		}
		task()
	}
}

// inTurn has the worker do something, and waits for it.
func (k *keeper) inTurn(task func() error) error {
	if k.gone {
		return gone("take a turn")
	}
	err, _ := k.await(func(done func(any)) {
		k.work.put(func() { done(task()) })
	}).(error)
	return err
}

// do queues a command, unless it has been answered or begun before.
func (k *keeper) do(command *godwitv1.Command, task func() *godwitv1.Report) {
	answer, known := k.told.Begin(command, k.role().migration)
	switch {
	case answer != nil:
		k.say(answer)
		return
	case known:
		return
	}
	k.work.put(func() {
		if k.gone { // what has waited is for what is there now
			k.agent.command(command)
			return
		}
		k.tell("%s carries out %d %T of %s", k.proc.name, command.GetSequence(), command.GetOp(), command.GetSubject())
		if report := task(); report != nil {
			k.answer(command, report)
		}
	})
}

func (k *keeper) answer(command *godwitv1.Command, report *godwitv1.Report) {
	pledge.Answering(command, report)
	if pledge.Failed(report) || command.GetStopInstance() != nil {
		k.told.Forget(command)
	} else {
		k.told.End(command, report)
	}
	k.say(report)
}

// role is what is written down of the machine.
func (k *keeper) role() record {
	if k.m.folder == nil {
		return record{role: pledge.Alone}
	}
	return *k.m.folder
}

// note writes the machine's record.
func (k *keeper) note(next record) error {
	return k.write(func() { k.m.folder = &next })
}

func (k *keeper) setRole(role pledge.Role, migration string) error {
	next := k.role()
	next.role, next.migration = role, migration
	return k.note(next)
}

// say sends a report if there is a session.
func (a *agent) say(report *godwitv1.Report) {
	if a.session != nil {
		a.session.toServer.send(report)
	}
}

// fact is news that nobody asked for; a new session is told it again.
func (k *keeper) fact(subject string, report *godwitv1.Report) {
	report.Subject, report.Epoch = subject, uint64(k.m.epoch)
	k.facts = append(k.facts, report)
	k.say(report)
}

// takeUp is what follows from the part of a machine that an earlier agent left.
func (k *keeper) takeUp() {
	own := k.role()
	there := k.m.q != nil && k.m.q.alive
	if !there && k.m.q != nil {
		k.m.q = nil
	}
	if !there && k.bug(Killjoy) {
		return
	}
	switch {
	case own.role == pledge.Refused:
		k.tellRefused(own)
		k.ending = true
	case !there:
	case k.bug(Killjoy):
		k.work.put(func() { k.kill() })
	case own.role == pledge.Alone:
		k.work.put(func() { _ = k.m.q.resume() }) // a start may have been cut off before the guest ran
	case own.role == pledge.Arriving:
		k.spawn(k.proc, func() { k.arriveAgain(own.migration) })
	case own.role == pledge.Source && !k.m.q.runs:
		k.awaitDecision()
	case own.role == pledge.RanOn:
		k.tellRanOn(own)
		k.work.put(func() {
			if k.goOn() != nil {
				k.awaitDecision()
				return
			}
			k.asking = k.spawn(k.proc, func() {
				k.haveFramesBack(own)
				k.asking = nil
			})
		})
	}
	k.reapply(k.m.vm)
}

// died takes notice of the end of an instance.
func (k *keeper) died(n news) {
	if n.kind != processDied || k.ending || k.gone {
		return
	}
	own := k.role()
	k.endCause = "signal: killed"
	k.tell("%s: the instance of %s at epoch %d ended", k.proc.name, k.m.vm.name, k.m.epoch)
	err := gone("run")
	switch own.role {
	case pledge.Source, pledge.RanOn:
		k.decide()
		k.fact(own.migration, pledge.SourceFailed(err, true))
	case pledge.Arriving, pledge.Arrived:
		k.fact(own.migration, pledge.TargetGone(err, own.role.MayHaveRun(k.opened())))
	}
	if own.role != pledge.Arriving {
		k.fact(string(k.m.vm.name), k.said(fleet.InstanceExited, k.endCause))
	}
}

// opened tells whether the gate is open, or may be.
func (k *keeper) opened() bool {
	return !k.m.tapped || k.m.gate != closed && k.m.gate != tunnelOnly && k.m.gate != arriving
}

// reapply points the host's own entries to whichever tap claims a VM's packets.
func (h *host) reapply(v *vm) {
	var newest *machine
	for _, m := range h.machines {
		if m.vm == v && m.tapped && (newest == nil || m.epoch >= newest.epoch) && h.claims(m) {
			newest = m
		}
	}
	h.local[v.index] = newest
}

func (h *host) claims(m *machine) bool {
	k := h.agent.keeper(m)
	if k == nil || k.leaving {
		return false
	}
	own := k.role().role
	unowned := own == pledge.Arriving || own == pledge.Refused
	return !unowned || k.receives || m.gate == arriving || m.gate == settling
}

// kept is what a command is held against that may be for the machine.
func (k *keeper) kept() pledge.Kept {
	own := k.role()
	return pledge.Kept{Role: own.role, Migration: own.migration, Started: k.m.q != nil, Ended: k.m.q.ended()}
}

// kill ends the instance's process and waits for its end.
func (k *keeper) kill() {
	k.decide()
	k.ending = true
	k.m.q.kill()
}

// discard ends the instance and removes all that belongs to it here.
func (k *keeper) discard() {
	k.kill()
	k.endCopy()
	k.spend()
	k.unclaim()
	k.sleep(k.between(time.Millisecond, 5*time.Millisecond))
	k.m.untap(k.m.killed || k.m.vm.down())
	k.forget(k)
	k.remove(k.m)
}

func (k *keeper) unclaim() {
	k.leaving = true
	k.reapply(k.m.vm)
}

// command takes a command of the session.
func (a *agent) command(command *godwitv1.Command) {
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_StartInstance:
		k, err := a.keeperFor(op.StartInstance.GetInstance())
		if err != nil {
			a.host.startsNever(op.StartInstance.GetInstance())
			a.say(pledge.Answering(command, &godwitv1.Report{Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
				Vm: command.GetSubject(), Epoch: command.GetEpoch(), State: string(fleet.InstanceExited), Cause: err.Error(),
			}}}))
			return
		}
		k.do(command, func() *godwitv1.Report { return k.startAlone(op.StartInstance.GetInstance()) })
	case *godwitv1.Command_StopInstance:
		a.stopHere(command, op.StopInstance)
	case *godwitv1.Command_ForgetInstance:
		if m := a.find(fleet.VMName(op.ForgetInstance.GetVm()), fleet.Epoch(op.ForgetInstance.GetEpoch())); m != nil {
			k := a.keeper(m)
			k.do(command, func() *godwitv1.Report {
				if k.forgets(op.ForgetInstance) {
					k.discard()
				} else {
					k.told.Forget(command)
				}
				return nil
			})
		}
	case *godwitv1.Command_PrepareTarget:
		k, err := a.keeperFor(op.PrepareTarget.GetInstance())
		if err != nil {
			a.say(pledge.Answering(command, pledge.TargetFailed(err, true)))
			return
		}
		k.do(command, func() *godwitv1.Report {
			if !k.kept().TargetOf(command.GetSubject()) {
				return pledge.TargetFailed(gone("prepare"), false)
			}
			return k.prepareTarget(command.GetSubject(), op.PrepareTarget)
		})
	default:
		a.migrationCommand(command)
	}
}

// forgets tells whether what the servers hold to be stale, or to have ended, is.
func (k *keeper) forgets(want *godwitv1.ForgetInstance) bool {
	return k.kept().Spared(k.state(), want.GetEnded(), want.GetMigration()) == ""
}

// keeperFor gives the keeper of an instance, a new one if there is none and may be.
func (a *agent) keeperFor(instance *godwitv1.Instance) (*keeper, error) {
	name, epoch := fleet.VMName(instance.GetVm()), fleet.Epoch(instance.GetEpoch())
	m := a.find(name, epoch)
	if m == nil {
		if err := a.checkNew(instance); err != nil {
			return nil, err
		}
		m = &machine{host: a.host, vm: a.vmNamed(name), epoch: epoch, gate: closed}
		a.machines = append(a.machines, m)
	}
	if k := a.keeper(m); k != nil {
		return k, nil
	}
	return a.keep(m), nil
}

func (a *agent) migrationCommand(command *godwitv1.Command) {
	addressee, known := pledge.AddresseeOf(command, a.name, func(vm fleet.VMName, epoch fleet.Epoch) bool { return a.find(vm, epoch) != nil })
	if !known {
		return
	}
	m := a.find(addressee.VM, addressee.Epoch)
	if m == nil {
		a.say(pledge.Answering(command, addressee.Absent))
		return
	}
	k := a.keeper(m)
	k.do(command, func() *godwitv1.Report {
		if !addressee.Is(k.kept()) {
			return addressee.Foreign
		}
		if refusal := k.kept().Refuses(command); refusal != nil && !k.bug(Unforgiving) {
			return refusal
		}
		return k.migrate(command)
	})
}

func (k *keeper) migrate(command *godwitv1.Command) *godwitv1.Report {
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_StartCopy:
		return k.startCopy(command, op.StartCopy)
	case *godwitv1.Command_ResumeSource:
		return k.resumeSource(fleet.Epoch(op.ResumeSource.GetNewEpoch()))
	case *godwitv1.Command_RetireSource:
		return k.retireSource()
	case *godwitv1.Command_ReleaseSource:
		return k.releaseSource()
	case *godwitv1.Command_RunTarget:
		return k.runTarget()
	case *godwitv1.Command_FinishTarget:
		return k.finishTarget()
	case *godwitv1.Command_ReleaseTarget:
		return k.releaseTarget(op.ReleaseTarget)
	}
	return nil
}
