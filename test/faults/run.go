package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

const (
	// finalWithin is longer than the deadlines of a migration's parts that can
	// follow a fault, together with the fault.
	finalWithin = 150 * time.Second
	// settleWithin is for what may still be done after the final state.
	settleWithin = 30 * time.Second
	// returnWithin is for programs to be up again, and for a guest to answer.
	returnWithin = time.Minute
	// answers show that a guest answers.
	answers = 50
	rate    = 200 // packets a second, so that pauses are known to 5 ms
	// slowly makes a copy last for some seconds.
	slowly = 48 << 20
)

// trial is one run of one cell.
type trial struct {
	watched
	cell  cell
	stage stage

	from, to  probe.Mark // of the traffic that counts for the pause
	migration *godwitv1.Migration
	vm        *godwitv1.VM
	doubled   uint64 // packets that came to the guest more than once
	found     findings
}

// tryCell runs a cell once. Missed says why the fault did not fall into its
// state. An error says that the lab itself does not work any more.
func tryCell(ctx context.Context, f *fleetlab.Fleet, c cell, number int) (r result, missed string, err error) {
	p, err := planeOf(f)
	if err != nil {
		return r, "", err
	}
	t := &trial{watched: watched{fleet: f}, cell: c, stage: stage{fleet: f, plane: p, cell: c}}
	before, err := inventories(ctx, f)
	if err != nil {
		return r, "", err
	}
	if err := t.boot(ctx, fmt.Sprintf("cell%d", number), diskSize, recordsPerSecond); err != nil {
		return r, "", err
	}
	evidence, err := t.observe(ctx)
	if err != nil {
		return r, "", err
	}
	if err := t.checkClean(ctx, before); err != nil {
		return r, "", err
	}
	evidence.checkEpochs(&t.found)
	evidence.checkReplies(&t.found)
	evidence.checkDisks(&t.found)
	evidence.checkPackets(&t.found, c.mayLose(t.stage.mended.Sub(t.stage.begun)))
	return t.result(evidence), t.stage.missed(t.migration), nil
}

// observe migrates under all eyes, removes the VM, and gives what was seen.
func (t *trial) observe(ctx context.Context) (e evidence, err error) {
	err = t.openEyes(ctx, probe.UDPConfig{Rate: rate, Straggle: t.cell.straggle()})
	if err == nil {
		err = t.udp.Answered(ctx, t.udp.Begun(), answers)
	}
	if err != nil {
		return e, errors.Join(err, t.closeEyes(ctx, &e))
	}
	err = t.migrate(ctx)
	if err == nil {
		err = t.settle(ctx)
	}
	return e, errors.Join(err, t.closeEyes(ctx, &e))
}

// migrate follows a migration with its fault to its final state.
func (t *trial) migrate(ctx context.Context) (err error) {
	bounded, cancel := context.WithTimeout(ctx, finalWithin)
	defer cancel()
	t.from = t.udp.Mark()
	t.migration, err = t.fleet.Migrate(bounded, &godwitv1.CreateMigrationRequest{
		Vm: t.guest.Name, Target: targetHost, Policy: &godwitv1.MigrationPolicy{BandwidthMax: slowly, OnPredictedFailure: "go-on"},
	}, func(m *godwitv1.Migration) { t.stage.see(bounded, m) })
	if bounded.Err() != nil && ctx.Err() == nil {
		t.found.add("not final", "the migration is %s after %s: %s", t.migration.GetState(), finalWithin, t.migration.GetCause())
		err = nil
	}
	return errors.Join(err, t.stage.finish())
}

// settle waits until all programs are there again and the VM is where the
// record says that it is.
func (t *trial) settle(ctx context.Context) error {
	if err := awaitPrograms(ctx, t.fleet); err != nil && ctx.Err() == nil {
		t.found.add(notBack, "%v", err)
	}
	if err := t.awaitPlace(ctx); err != nil {
		return err
	}
	if t.alive() {
		bounded, cancel := context.WithTimeout(ctx, returnWithin)
		defer cancel()
		if err := t.udp.Answered(bounded, t.udp.Mark(), answers); err != nil {
			t.found.add("never none", "the guest does not answer: the record says %s on %s", t.vm.GetPhase(), t.vm.GetOwner().GetHost())
		} else {
			flow, err := t.asked(ctx)
			if err != nil {
				return err
			}
			t.doubled = flow.Duplicated
		}
	}
	t.to = t.udp.Mark()
	return nil
}

// alive: the record says that the VM runs.
func (t *trial) alive() bool { return t.vm.GetPhase() == "running" }

// awaitPlace waits until the VM runs on the host that the record says, and on
// no other.
func (t *trial) awaitPlace(ctx context.Context) (err error) {
	bounded, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	places := ""
	err = poll(bounded, "the VM to be in its place", func() (fine bool, err error) {
		if t.vm, err = t.guest.Record(ctx); err != nil {
			return false, err
		}
		fine, places, err = t.inPlace()
		return fine, err
	})
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		t.found.add("wrong place", "the record says %s on %s; QEMUs:%s", t.vm.GetPhase(), t.vm.GetOwner().GetHost(), places)
		err = nil
	}
	if err == nil && !t.alive() && !t.cell.killsOwner() {
		t.found.add("never none", "the VM is %s: %s", t.vm.GetPhase(), t.vm.GetCause())
	}
	return err
}

// inPlace holds the QEMUs that there are on each host against the record.
func (t *trial) inPlace() (fine bool, places string, err error) {
	want := map[string]int{}
	if t.alive() {
		want[t.vm.GetOwner().GetHost()] = 1
	}
	fine = true
	for _, host := range []string{sourceHost, targetHost, clientHost} {
		pids, err := t.fleet.QEMUs(host)
		if err != nil {
			return false, places, err
		}
		fine = fine && len(pids) == want[host]
		places += fmt.Sprintf(" %s %d", host, len(pids))
	}
	return fine, places, nil
}

// closeEyes removes the VM and gathers what was seen.
func (t *trial) closeEyes(ctx context.Context, e *evidence) error {
	var errs []error
	if t.udp != nil {
		patience := ctx
		if !t.alive() { // nothing comes any more
			patience = over()
		}
		var err error
		e.client, err = t.udp.Stop(patience)
		errs = append(errs, err)
	}
	if t.wire != nil {
		frames, err := t.wire.stop()
		e.frames, errs = frames, append(errs, err)
	}
	if err := t.end(ctx); err != nil && ctx.Err() == nil {
		t.found.add(leftBehind, "the VM cannot be removed: %v", err)
	}
	seen, err := t.stopFollowing()
	e.disks, errs = seen, append(errs, err)
	if err := t.removeDisks(ctx); err != nil && ctx.Err() == nil {
		t.found.add(leftBehind, "its disks cannot be removed: %v", err)
	}
	e.doubled = t.doubled
	e.source, e.target = t.fleet.Lab.Host(sourceHost).Addr, t.fleet.Lab.Host(targetHost).Addr
	e.movedTo = t.migration.GetCommitted() && !t.migration.GetTakenBack()
	return errors.Join(errs...)
}

// inventories tells what of VMs there is on all hosts.
func inventories(ctx context.Context, f *fleetlab.Fleet) (string, error) {
	var all strings.Builder
	for _, host := range f.Hosts() {
		one, err := f.Inventory(ctx, host)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "%s: %v; ", host, one)
	}
	return all.String(), nil
}

// checkClean demands that nothing of the VM is left anywhere.
func (t *trial) checkClean(ctx context.Context, before string) error {
	bounded, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	after := ""
	err := poll(bounded, "nothing to be left", func() (_ bool, err error) {
		after, err = inventories(ctx, t.fleet)
		return after == before, err
	})
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		t.found.add(leftBehind, "%s; before it was %s", after, before)
		return nil
	}
	return err
}
