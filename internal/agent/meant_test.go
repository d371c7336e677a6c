package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/network"
)

const otherUID = "11111111-6d3f-4f0e-9a55-0c5f0d1f8a11"

// sourceOrders are all orders for a source, of a migration that has gone by.
func sourceOrders(uid string) map[string]*godwitv1.Command {
	order := func(sequence uint64) *godwitv1.Command {
		return &godwitv1.Command{Subject: "m0", Epoch: 1, Sequence: sequence, Uid: uid}
	}
	start, resume, retire, release := order(1), order(2), order(3), order(4)
	start.Op = &godwitv1.Command_StartCopy{StartCopy: &godwitv1.StartCopy{Vm: testVM, Target: "h2", TargetAddress: "10.0.0.9"}}
	resume.Op = &godwitv1.Command_ResumeSource{ResumeSource: &godwitv1.ResumeSource{Vm: testVM, NewEpoch: 3}}
	retire.Op = &godwitv1.Command_RetireSource{RetireSource: &godwitv1.RetireSource{Vm: testVM}}
	release.Op = &godwitv1.Command_ReleaseSource{ReleaseSource: &godwitv1.ReleaseSource{Vm: testVM}}
	return map[string]*godwitv1.Command{"start": start, "resume": resume, "retire": retire, "release": release}
}

// checkRefused sends orders for a source and waits until each is refused; gone
// says that its instance is.
func (h *testHost) checkRefused(gone bool, orders ...*godwitv1.Command) {
	h.t.Helper()
	refused := func(r *godwitv1.Report) bool { return r.GetSubject() == "m0" && isSourceFailed(r) }
	for _, order := range orders {
		before := h.count(refused)
		h.sendCommand(order)
		if got := h.awaitReports(before+1, "refusal", refused); got.GetSourceFailed().GetGone() != gone {
			h.t.Errorf("%v: %v", order, got)
		}
	}
}

// What was meant for a VM comes when another one has its name, at the same epoch:
// it does nothing to that, and is answered as if nothing were there.
func TestCommandsForAnotherVM(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Busy()))
	events := h.instance(testVM, 1).Subscribe()
	other := firmware(1)
	other.Uid = otherUID
	if got := h.do(startCommand(7, other)).GetInstance(); got.GetState() != "exited" || !strings.Contains(got.GetCause(), testUID) {
		t.Errorf("start: %v", got)
	}
	stop, forget := stopCommand(8, 1, 0), forgetCommand(9, 1)
	stop.Uid, forget.Uid = otherUID, otherUID
	if got := h.do(stop).GetInstance(); got.GetState() != "absent" {
		t.Errorf("stop: %v", got)
	}
	older := forgetCommand(10, 1)
	older.GetForgetInstance().Uid = otherUID
	h.sendCommand(forget)
	h.sendCommand(older)
	orders := sourceOrders(otherUID)
	h.checkRefused(true, orders["start"], orders["resume"])
	if got := h.do(orders["retire"]); got.GetSourceRetired() == nil {
		t.Errorf("retire: %v", got)
	}
	if got := h.do(orders["release"]); got.GetSourceReleased() == nil {
		t.Errorf("release: %v", got)
	}
	h.idle(1)
	checkUndisturbed(t, events)
	h.checkRunState(testVM, 1, "running")
	own := stopCommand(11, 1, 0)
	own.Uid = testUID
	if got := h.do(own).GetInstance(); got.GetState() != "exited" {
		t.Errorf("its own stop: %v", got)
	}
	h.checkNothingLeft()
}

// Orders of a migration that has gone by come to the source of the next, which
// stands still, and when it runs alone again.
func TestOrdersOfAnotherMigration(t *testing.T) {
	m := newMove(t)
	m.prepare()
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		return nil, refusal()
	})
	m.copyUntilSwitch()
	orders := sourceOrders(testUID)
	for _, restarted := range []bool{false, true} {
		if restarted {
			m.source.stop()
			m.source.start()
		}
		m.source.checkRefused(false, orders["start"], orders["resume"], orders["retire"], orders["release"])
		m.source.checkGates("after another one's orders", network.Redirect)
		if m.source.runState(testVM, 1).Running() || len(m.source.processes()) != 1 {
			t.Errorf("the source runs, or is gone: %v", m.source.processes())
		}
	}
	m.abort()
	m.source.checkRefused(false, orders["retire"], orders["release"])
	m.source.checkRunState(testVM, 1, "running")
}

// A VM is to be started at the epoch at which the target of a migration still waits
// that was aborted: it is not, then or later, and the target is left as it is.
func TestStartWhereATargetWaits(t *testing.T) {
	m := newMove(t)
	m.prepare()
	start := startCommand(1, booting(t, m.fleet, 2, bootsector.Busy()))
	for _, command := range []*godwitv1.Command{start, again(start)} {
		got := m.target.do(command).GetInstance()
		if got.GetState() != "exited" || !strings.Contains(got.GetCause(), testMigration) {
			t.Errorf("start: %v", got)
		}
		if command == start {
			m.target.checkRunState(testVM, 2, "inmigrate")
		}
		if got := m.target.do(m.releaseCommand()); got.GetTargetReleased() == nil {
			t.Errorf("release: %v", got)
		}
		m.target.checkNothingLeft()
	}
}

// A VM is started at the epoch at which the target of an aborted migration waited:
// the release of that target does nothing to it.
func TestReleaseComesAgainAfterAStart(t *testing.T) {
	m := newMove(t)
	m.prepare()
	release := func() {
		if got := m.target.do(m.releaseCommand()); got.GetTargetReleased() == nil {
			t.Errorf("release: %v", got)
		}
	}
	release()
	m.source.do(stopCommand(99, 1, 0)) // its disk is locked until then
	if got := m.target.do(startCommand(1, booting(t, m.fleet, 2, bootsector.Busy()))).GetInstance(); got.GetState() != "running" {
		t.Errorf("start after the release: %v", got)
	}
	release() // the answer was lost
	m.target.checkRunState(testVM, 2, "running")
}

// again is a command that is given anew.
func again(command *godwitv1.Command) *godwitv1.Command {
	command = proto.CloneOf(command)
	command.Sequence += 1000
	return command
}

// A target is to be removed that was held to be stale: only the one of that
// migration, while it waits, and never what runs.
func TestForgetStrayTarget(t *testing.T) {
	m := newMove(t)
	m.prepare()
	forget := func(migration string) {
		t.Helper()
		c := forgetCommand(1<<32, 2)
		c.Uid, c.GetForgetInstance().Migration = testUID, migration
		m.target.sendCommand(c)
		m.sequence++
		m.target.idle(m.sequence)
	}
	forget("m0")
	m.target.checkRunState(testVM, 2, "inmigrate")
	run := m.runCommand()
	m.grant(run)
	m.source.sendCommand(m.copyCommand(0))
	m.target.awaitReport("running target", answers(run))
	forget(testMigration)
	m.target.checkRunState(testVM, 2, "running")
	m.settle()

	back := m.back()
	back.prepare()
	c := forgetCommand(1<<32, 3)
	c.GetForgetInstance().Migration = back.id
	m.source.sendCommand(c)
	m.source.awaitRemoval(3)
}

// A server that does not know of the refusal by which a source runs on holds it to
// be stale. What it is proven by later counts.
func TestForgetWhatRunsOn(t *testing.T) {
	m := newMove(t)
	m.nextAsked(m.leaveUndecided())
	m.checkRanOn()
	forget := forgetCommand(1<<32, 1)
	m.source.sendCommand(forget)
	m.source.idle(1)
	m.source.checkRunState(testVM, 1, "running")
	if got := m.source.do(m.resumeCommand()); got.GetSourceResumed() == nil {
		t.Errorf("resume: %v", got)
	}
	m.source.sendCommand(forget)
	m.source.awaitRemoval(1)
}

// It runs on, too, while no agent can take it over.
func TestForgetWhatRunsOnUnadopted(t *testing.T) {
	m := newMove(t)
	m.nextAsked(m.leaveUndecided())
	m.checkRanOn()
	monitor := filepath.Join(m.source.agent.instanceDir(machineKey{testVM, 1}), "qmp.sock")
	m.source.stop()
	if err := os.Rename(monitor, monitor+".away"); err != nil {
		t.Fatal(err)
	}
	m.source.start()
	m.source.agent.command(t.Context(), forgetCommand(1<<32, 1))
	there, done := m.source.agent.find(machineKey{testVM, 1}), make(chan struct{}, 1)
	there.work <- func() { done <- struct{}{} }
	receive(t, "end of the command before", done)
	if len(m.source.processes()) != 1 {
		t.Error("the only instance is gone")
	}
	if err := os.Rename(monitor+".away", monitor); err != nil {
		t.Fatal(err)
	}
	m.abort()
}

// awaitRemoval waits until nothing is left of an instance, which nobody reports.
func (h *testHost) awaitRemoval(epoch fleet.Epoch) {
	h.t.Helper()
	waitFor(h.t, "the removal", func() bool {
		_, err := os.Stat(h.agent.instanceDir(machineKey{testVM, epoch}))
		return os.IsNotExist(err)
	})
	h.checkNothingLeft()
}
