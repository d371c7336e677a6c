package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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
	// straggle is how long a packet may be on its way before it counts as lost.
	straggle = 10 * time.Second
	// answers show that a guest answers.
	answers = 50
	rate    = 200 // packets a second, so that pauses are known to 5 ms
	// slowly makes a copy last for some seconds.
	slowly = 48 << 20
)

// trial is one run of one cell.
type trial struct {
	fleet *fleetlab.Fleet
	cell  cell
	stage stage

	guest  *fleetlab.Guest
	disk   string // path
	udp    *probe.UDP
	wire   *wire
	follow *follower

	from, to  probe.Mark // of the traffic that counts for the pause
	migration *godwitv1.Migration
	vm        *godwitv1.VM
	doubled   uint64 // packets that came to the guest more than once
	found     findings
}

// tryCell runs a cell once. Missed says why the fault did not fall into its
// state. An error says that the lab itself does not work any more.
func tryCell(ctx context.Context, f *fleetlab.Fleet, c cell, number int) (r result, missed string, err error) {
	plane, err := planeOf(f)
	if err != nil {
		return r, "", err
	}
	t := &trial{fleet: f, cell: c, stage: stage{fleet: f, plane: plane, cell: c}}
	before, err := inventories(ctx, f)
	if err != nil {
		return r, "", err
	}
	if err := t.boot(ctx, number); err != nil {
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
	evidence.checkDisk(&t.found)
	evidence.checkPackets(&t.found, c.mayLose(t.stage.mended.Sub(t.stage.begun)))
	return t.result(evidence), t.stage.missed(t.migration), os.Remove(t.disk)
}

// boot starts a VM on the source.
func (t *trial) boot(ctx context.Context, number int) error {
	t.disk = filepath.Join(t.fleet.Lab.Dir(), fmt.Sprintf("disk%d.raw", number))
	if err := os.WriteFile(t.disk, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(t.disk, diskSize); err != nil {
		return err
	}
	guest, err := t.fleet.Boot(ctx, fleetlab.GuestConfig{
		Name: fmt.Sprintf("cell%d", number), Host: sourceHost, Records: recordsPerSecond,
		Disks: []*godwitv1.Disk{{Name: "records", Kind: "file", Path: t.disk, Format: "raw"}},
	})
	t.guest = guest
	return err
}

// observe migrates under all eyes, removes the VM, and gives what was seen.
func (t *trial) observe(ctx context.Context) (e evidence, err error) {
	if err := t.openEyes(ctx); err != nil {
		return e, errors.Join(err, t.closeEyes(ctx, &e))
	}
	err = t.migrate(ctx)
	if err == nil {
		err = t.settle(ctx)
	}
	return e, errors.Join(err, t.closeEyes(ctx, &e))
}

func (t *trial) openEyes(ctx context.Context) (err error) {
	if t.follow, err = follow(t.disk); err != nil {
		return err
	}
	vm, err := t.guest.Record(ctx)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(vm.GetSpec().GetPorts()[0].GetMac())
	if err != nil {
		return err
	}
	if t.wire, err = capture(t.fleet.Lab.Host(clientHost), mac); err != nil {
		return err
	}
	t.udp, err = probe.StartUDP(t.fleet.Client, probe.UDPConfig{
		Target: netip.AddrPortFrom(t.guest.Addrs[0], 0), Rate: rate, Straggle: straggle,
	})
	if err != nil {
		return err
	}
	return t.udp.Answered(ctx, t.udp.Begun(), answers)
}

// migrate follows a migration with its fault to its final state.
func (t *trial) migrate(ctx context.Context) (err error) {
	bounded, cancel := context.WithTimeout(ctx, finalWithin)
	defer cancel()
	t.from = t.udp.Mark()
	t.migration, err = t.fleet.Migrate(bounded, &godwitv1.CreateMigrationRequest{
		Vm: t.guest.Name, Target: targetHost, Policy: &godwitv1.MigrationPolicy{BandwidthMax: slowly},
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
	if err := t.awaitPrograms(ctx); err != nil && ctx.Err() == nil {
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
		} else if err := t.askGuest(ctx); err != nil {
			return err
		}
	}
	t.to = t.udp.Mark()
	return nil
}

// awaitPrograms waits until all servers answer and all hosts have a session.
func (t *trial) awaitPrograms(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, returnWithin)
	defer cancel()
	for i := range t.fleet.Servers() {
		if err := t.fleet.AwaitServerOf(ctx, i); err != nil {
			return err
		}
	}
	return t.fleet.AwaitHosts(ctx)
}

// alive: the record says that the VM runs.
func (t *trial) alive() bool { return t.vm.GetPhase() == "running" }

// awaitPlace waits until the VM runs on the host that the record says, and on
// no other.
func (t *trial) awaitPlace(ctx context.Context) (err error) {
	bounded, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	places := ""
	err = look(bounded, "the VM to be in its place", func() (bool, error) {
		if t.vm, err = t.guest.Record(ctx); err != nil {
			return false, err
		}
		want := map[string]int{}
		if t.alive() {
			want[t.vm.GetOwner().GetHost()] = 1
		}
		fine := true
		places = ""
		for _, host := range []string{sourceHost, targetHost, clientHost} {
			pids, err := t.fleet.QEMUs(host)
			if err != nil {
				return false, err
			}
			fine = fine && len(pids) == want[host]
			places += fmt.Sprintf(" %s %d", host, len(pids))
		}
		return fine, nil
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

// askGuest has the guest say what came to it.
func (t *trial) askGuest(ctx context.Context) error {
	report, err := t.guest.Probe().Status(ctx)
	for _, flow := range report.Flows {
		if flow.Flow == t.udp.Flow() {
			t.doubled = flow.Duplicated
		}
	}
	return err
}

// closeEyes removes the VM and gathers what was seen.
func (t *trial) closeEyes(ctx context.Context, e *evidence) error {
	var errs []error
	if t.udp != nil {
		patience := ctx
		if !t.alive() { // nothing comes any more
			over, end := context.WithCancel(ctx)
			end()
			patience = over
		}
		var err error
		e.client, err = t.udp.Stop(patience)
		errs = append(errs, err)
	}
	if t.wire != nil {
		frames, err := t.wire.stop()
		e.frames, errs = frames, append(errs, err)
	}
	if err := t.remove(ctx); err != nil && ctx.Err() == nil {
		t.found.add(leftBehind, "the VM cannot be removed: %v", err)
	}
	if t.follow != nil {
		disk, err := t.follow.stop()
		e.disk, errs = disk, append(errs, err)
	}
	e.doubled = t.doubled
	e.source, e.target = t.fleet.Lab.Host(sourceHost).Addr, t.fleet.Lab.Host(targetHost).Addr
	e.movedTo = t.migration.GetCommitted() && !t.migration.GetTakenBack()
	return errors.Join(errs...)
}

// remove removes the VM, within a limit.
func (t *trial) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, returnWithin)
	defer cancel()
	return t.guest.Remove(ctx)
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
	err := look(bounded, "nothing to be left", func() (_ bool, err error) {
		after, err = inventories(ctx, t.fleet)
		return after == before, err
	})
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		t.found.add(leftBehind, "%s; before it was %s", after, before)
		return nil
	}
	return err
}
