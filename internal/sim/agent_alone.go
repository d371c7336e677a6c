package sim

import (
	"fmt"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

// What an agent does for the life of a VM outside of migrations.

// hello says what the host has.
func (a *agent) hello() *godwitv1.Hello {
	hello := &godwitv1.Hello{BootId: fmt.Sprintf("%s-%d", a.name, a.boots)}
	for _, k := range a.keepers {
		said := k.said(k.state(), k.endCause).GetInstance()
		said.Migration = k.role().migration
		hello.Instances = append(hello.Instances, said)
	}
	return hello
}

func (k *keeper) said(state fleet.InstanceState, cause string) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
		Vm: string(k.m.vm.name), Uid: string(k.m.vm.uid), Epoch: uint64(k.m.epoch), State: string(state), Cause: cause,
	}}}
}

// state of the instance, as a session is told of it.
func (k *keeper) state() fleet.InstanceState {
	role := k.role().role
	switch {
	case k.launching && role == pledge.Alone:
		return fleet.InstanceStarting
	case k.launching:
		return role.State(false, false)
	}
	return role.State(k.m.q.ended(), k.opened())
}

// startAlone starts a VM that runs nowhere.
func (k *keeper) startAlone(want *godwitv1.Instance) *godwitv1.Report {
	switch {
	case !k.kept().TakesStart(k.opened()):
		k.host.startsNever(want)
		return k.said(fleet.InstanceExited, "what a migration left is not removed yet")
	case k.m.q == nil:
	case k.m.q.ended():
		return k.said(fleet.InstanceExited, k.endCause)
	default:
		return k.said(fleet.InstanceRunning, "")
	}
	if err := k.note(record{role: pledge.Alone}); err != nil {
		k.host.startsNever(want)
		k.discard()
		return k.said(fleet.InstanceExited, err.Error())
	}
	k.m.untap(true) // of a start that an agent's end cut off
	k.launch(pass, false)
	if err := k.m.q.resume(); err != nil {
		k.host.startsNever(want)
		k.discard()
		return k.said(fleet.InstanceExited, err.Error())
	}
	return k.said(fleet.InstanceRunning, "")
}

// launch makes the tap and the process.
func (k *keeper) launch(gate mode, incoming bool) {
	k.launching = true
	k.m.tapped, k.m.gate = true, gate
	k.reapply(k.m.vm)
	k.sleep(k.between(100*time.Millisecond, time.Second))
	k.startEmulator(k.m, incoming).listen = k.died
	k.launching = false
}

// stopHere takes a command to stop an instance. One that is not here is absent.
func (a *agent) stopHere(command *godwitv1.Command, want *godwitv1.StopInstance) {
	m := a.find(fleet.VMName(want.GetVm()), fleet.Epoch(command.GetEpoch()))
	if m == nil {
		a.say(pledge.Answering(command, &godwitv1.Report{Event: &godwitv1.Report_Instance{Instance: &godwitv1.InstanceReport{
			Vm: want.GetVm(), Epoch: command.GetEpoch(), State: string(fleet.InstanceAbsent),
		}}}))
		return
	}
	k, grace := a.keeper(m), time.Duration(want.GetGraceMs())*time.Millisecond
	if grace == 0 {
		k.hurryUp()
	}
	k.do(command, func() *godwitv1.Report { return k.stop(grace) })
}

// stop ends an instance: by its guest if there is time for it, else at once.
func (k *keeper) stop(grace time.Duration) *godwitv1.Report {
	k.ending = true
	if grace > 0 && !k.hurry && !k.m.q.ended() {
		k.awaitGuest(grace)
	}
	k.discard()
	return k.said(fleet.InstanceExited, "")
}

// awaitGuest lets a guest power itself off, which every other one does.
func (k *keeper) awaitGuest(grace time.Duration) {
	q := k.m.q
	k.await(func(done func(any)) {
		k.hurried = done
		q.listen = func(n news) {
			if n.kind == processDied {
				done(nil)
			}
		}
		if k.one(2) {
			k.at(nil, k.between(200*time.Millisecond, 5*time.Second), q.die)
		}
		k.at(k.proc, grace, func() { done(nil) })
	})
	k.hurried = nil
}

// hurryUp ends the waiting of a stop for its guest.
func (k *keeper) hurryUp() {
	k.hurry = true
	if k.hurried != nil {
		k.hurried(nil)
	}
}

// checkNew refuses an instance that a VM has had here before, or that is older than
// one that it has.
func (h *host) checkNew(instance *godwitv1.Instance) error {
	name, epoch := fleet.VMName(instance.GetVm()), fleet.Epoch(instance.GetEpoch())
	newest := h.spent[name]
	for _, m := range h.machines {
		if m.vm.name == name && m.epoch > epoch {
			newest = max(newest, m.epoch)
		}
	}
	if epoch > newest {
		return nil
	}
	return &fleet.Error{Code: fleet.Conflict, Op: "start", Cause: fmt.Sprintf("the host has had it at epoch %d", newest)}
}

// spend remembers the epoch of an instance that may have run.
func (k *keeper) spend() {
	if role := k.role().role; role != pledge.Arriving && role != pledge.Refused {
		k.host.spent[k.m.vm.name] = max(k.host.spent[k.m.vm.name], k.m.epoch)
	}
}

// startsNever remembers a start that was refused or has failed.
func (h *host) startsNever(want *godwitv1.Instance) {
	name := fleet.VMName(want.GetVm())
	h.spent[name] = max(h.spent[name], fleet.Epoch(want.GetEpoch()))
}
