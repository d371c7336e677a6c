package sim

import (
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

// The pauses of a target that asks for the commit, as the real agent has them.
const (
	commitTurn     = 400 * time.Millisecond
	commitRetryMin = 20 * time.Millisecond
	commitRetryMax = time.Second
)

func (k *keeper) prepareTarget(migration string, want *godwitv1.PrepareTarget) *godwitv1.Report {
	if k.role().role == pledge.Arrived {
		return nil // an old command to a new agent
	}
	if err := k.prepare(migration, want); err != nil {
		k.discard()
		return pledge.TargetFailed(err, true)
	}
	return &godwitv1.Report{Event: &godwitv1.Report_TargetPrepared{TargetPrepared: &godwitv1.TargetPrepared{Port: uint32(k.m.port)}}}
}

func (k *keeper) prepare(migration string, want *godwitv1.PrepareTarget) error {
	adopted := !k.m.q.ended()
	if !adopted {
		source := k.hostNamed(fleet.HostName(want.GetSource()))
		if err := k.note(record{role: pledge.Arriving, migration: migration, peer: source}); err != nil {
			return err
		}
		k.m.untap(k.m.killed) // of a start that an agent's end cut off
		k.launch(closed, true)
	}
	if adopted && k.m.port != 0 && k.m.gate != closed {
		return nil
	}
	if err := k.m.q.command(func() error { return nil }); err != nil {
		return err
	}
	if k.m.port == 0 || !adopted {
		k.ports++
		k.m.port = 10000 + k.ports
	}
	k.m.tunnel, k.m.opened = tunnelOf(want.GetInstance().GetNetworks()), true
	k.sleep(k.between(time.Millisecond, 5*time.Millisecond))
	k.m.setGate(tunnelOnly, nil)
	if !adopted {
		k.arrive(migration)
	}
	return nil
}

// arrive follows the state's coming, and asks for the commit then.
func (k *keeper) arrive(migration string) {
	k.m.q.listen = func(n news) {
		k.died(n)
		switch n.kind {
		case stateLoaded:
			k.spawn(k.proc, func() { k.ready(migration) })
		case stateBroke:
			if !k.ending {
				k.fact(migration, pledge.TargetFailed(&fleet.Error{Code: fleet.Failed, Op: "load", Cause: "the stream broke"}, false))
			}
		}
	}
}

// arriveAgain takes a target up that an earlier agent has prepared.
func (k *keeper) arriveAgain(migration string) {
	k.arrive(migration)
	if err := k.m.q.command(func() error { return nil }); err == nil && (k.m.q.in == loaded || k.m.q.runs) {
		k.ready(migration)
	}
}

// ready has the state: it lets packets come and asks for the commit.
func (k *keeper) ready(migration string) {
	if err := k.inTurn(k.receive); err != nil {
		if !k.gone && !k.ending {
			k.fact(migration, pledge.TargetFailed(err, false))
		}
		return
	}
	if k.bug(Unfettered) {
		k.granted(migration, 0)
		return
	}
	k.askCommit(migration)
}

// receive makes the host's own entries send the VM's packets to the tap.
func (k *keeper) receive() error {
	switch {
	case k.ending:
		return &fleet.Error{Code: fleet.Conflict, Op: "take over", Cause: "the target is being released"}
	case k.receives:
		return nil
	}
	if err := k.m.q.command(func() error { return nil }); err != nil {
		return err
	}
	k.receives = true
	if !k.m.q.runs {
		k.m.setGate(arriving, nil)
	}
	k.reapply(k.m.vm)
	return nil
}

// askCommit asks the servers in turn until one has decided.
func (k *keeper) askCommit(migration string) {
	for tries := 0; !k.ending && !k.gone && !k.m.q.ended(); tries++ {
		asked := k.now
		answer, err := k.askServer(migration, k.agent.server+tries)
		switch pledge.Decided(k.m.epoch, fleet.Epoch(answer.GetEpoch()), err) {
		case pledge.Granted:
			k.owners[k.m.vm.index].Read(k.reader(), asked, k.now, owner(k.name, k.m.epoch))
			k.granted(migration, answer.GetSequence())
			return
		case pledge.Denied:
			return // the server releases this target
		}
		if tries >= len(k.servers) {
			k.sleep(min(commitRetryMin<<min(tries-len(k.servers), 10), commitRetryMax))
		}
	}
}

func (k *keeper) askServer(migration string, turn int) (*godwitv1.CommitResponse, error) {
	s := k.servers[turn%len(k.servers)]
	request := &godwitv1.CommitRequest{Migration: migration, Epoch: uint64(k.m.epoch - 1), Loaded: true}
	answer, err := k.call(k.node, s.node, s.proc, commitTurn, "commit", func() (any, error) { return s.commit(k.name, request) })
	response, _ := answer.(*godwitv1.CommitResponse)
	return response, err
}

// granted runs the target as the command RunTarget would.
func (k *keeper) granted(migration string, sequence uint64) {
	command := &godwitv1.Command{Subject: migration, Epoch: uint64(k.m.epoch - 1), Sequence: sequence, Op: &godwitv1.Command_RunTarget{}}
	k.do(command, k.runTarget)
}

// runTarget opens the gate and starts the vCPUs.
func (k *keeper) runTarget() *godwitv1.Report {
	own := k.role()
	switch own.role.Run() {
	case pledge.RunsAlready:
		return running()
	case pledge.RunNever:
		if !k.bug(Unforgiving) {
			return pledge.TargetRefused("its source asked it to give up")
		}
	}
	if k.m.q.ended() {
		return pledge.TargetGone(gone("run"), own.role.MayHaveRun(k.opened()))
	}
	if err := k.receive(); err != nil {
		return pledge.TargetFailed(err, false)
	}
	k.m.setGate(settling, nil)
	if err := k.m.q.resume(); err != nil {
		return pledge.TargetFailed(err, k.m.q.ended())
	}
	if err := k.setRole(pledge.Arrived, own.migration); err != nil {
		k.tell("%s: the machine's record was not written: %v", k.proc.name, err)
	}
	return running()
}

func running() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetRunning{TargetRunning: &godwitv1.TargetRunning{Marks: &godwitv1.TargetMarks{}}}}
}

func (k *keeper) finishTarget() *godwitv1.Report {
	k.m.setGate(pass, nil)
	k.m.opened = false
	if err := k.setRole(pledge.Alone, ""); err != nil {
		return pledge.TargetFailed(err, false)
	}
	k.facts = nil
	return pledge.TargetFinished()
}

func (k *keeper) releaseTarget(want *godwitv1.ReleaseTarget) *godwitv1.Report {
	frames := k.returnFrames(want)
	k.kill()
	k.unclaim()
	frames += k.returnFrames(want)
	k.discard()
	return pledge.TargetReleased(frames, nil)
}

func (k *keeper) returnFrames(want *godwitv1.ReleaseTarget) int {
	if !want.GetReturnFrames() || k.bug(Keeping) {
		return 0
	}
	return k.drainTo(k.hostAt(want.GetSourceAddress()))
}

func (k *keeper) drainTo(to *host) int {
	k.m.setGate(redirect, to)
	return k.m.drain()
}

// giveUp answers a source that asks for it. Of a target that is not here nobody
// can tell: it may have run, and moved on since.
func (a *agent) giveUp(vm fleet.VMName, epoch fleet.Epoch, migration string, caller *host) (bool, error) {
	k, err := a.target(vm, epoch, migration, caller)
	if err != nil {
		return false, err
	}
	gaveUp := false
	err = k.inTurn(func() error {
		own := k.role()
		switch own.role.GiveUp(own.role.MayHaveRun(k.opened())) {
		case pledge.KeepsOwns:
			return nil
		case pledge.GivesUp:
			if !k.bug(Unwritten) {
				if err := k.setRole(pledge.Refused, migration); err != nil {
					return err
				}
			}
			k.tellRefused(own)
		}
		gaveUp = true
		k.ending = !k.bug(Unforgiving) && !k.bug(Unwritten) // it stays until its frames are returned
		return nil
	})
	return gaveUp, err
}

func (k *keeper) tellRefused(own record) {
	k.fact(own.migration, pledge.TargetRefused("its source asked for it, and no commit had come"))
}

func (a *agent) returnFrames(vm fleet.VMName, epoch fleet.Epoch, migration string, caller *host) error {
	k, err := a.target(vm, epoch, migration, caller)
	if err != nil {
		return err
	}
	return k.inTurn(func() error {
		if k.role().role != pledge.Refused {
			return &fleet.Error{Code: fleet.Conflict, Op: "return frames", Cause: "its target has not given up"}
		}
		k.drainTo(caller)
		if !k.bug(Unforgiving) {
			k.kill()
		}
		return nil
	})
}

func (a *agent) target(vm fleet.VMName, epoch fleet.Epoch, migration string, caller *host) (*keeper, error) {
	m := a.find(vm, epoch)
	if m == nil {
		return nil, &fleet.Error{Code: fleet.NotFound, Op: "give up", Cause: "there is no such instance"}
	}
	k := a.keeper(m)
	switch own := k.role(); {
	case own.migration != "" && own.migration != migration:
		return nil, &fleet.Error{Code: fleet.Conflict, Op: "give up", Cause: "it is of another migration"}
	case own.peer != nil && own.peer != caller:
		return nil, &fleet.Error{Code: fleet.Denied, Op: "give up", Cause: "the caller is not its source"}
	}
	return k, nil
}
