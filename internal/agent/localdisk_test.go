package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/localdisk"
)

// newLocalMove is newMove for a VM with a local disk in which 0x11 is written.
func newLocalMove(t *testing.T) *move {
	t.Helper()
	f, hosts := newFleet(t, "h1", "h2")
	m := f.moveOf(hosts)
	m.booting = func(epoch fleet.Epoch) *godwitv1.Instance {
		instance := booting(t, f, epoch, bootsector.Busy())
		instance.Uid = testUID
		instance.Spec.Disks = append(instance.Spec.Disks, &godwitv1.Disk{
			Name: "data", Kind: string(fleet.DiskLocal), Format: "qcow2", SizeBytes: uint64(32 * fleet.MiB),
		})
		return instance
	}
	m.instance = m.booting(1)
	m.source.run(m.instance)
	m.source.awaitGuest(1)
	m.source.diskIO(1, "write -P 17 0 4M")
	return m
}

// diskIO has an instance's local disk do what its guest's driver would.
func (h *testHost) diskIO(epoch fleet.Epoch, command string) {
	h.t.Helper()
	log := filepath.Join(h.agent.instanceDir(machineKey{testVM, epoch}), "qemu.log")
	before, _ := os.ReadFile(log)
	line := map[string]string{"command-line": fmt.Sprintf("qemu-io -d /machine/peripheral/disk1-card/virtio-backend %q", command)}
	if err := h.instance(testVM, epoch).Monitor().Execute(h.t.Context(), "human-monitor-command", line, nil); err != nil {
		h.t.Fatal(err)
	}
	if after, err := os.ReadFile(log); err != nil || strings.Contains(string(after[len(before):]), "ailed") {
		h.t.Errorf("%s: %s, %v", command, after[len(before):], err)
	}
}

// prepareDisks is prepare, and gives where the target takes the disks.
func (m *move) prepareDisks() uint32 {
	m.t.Helper()
	prepared := m.target.do(m.prepareCommand()).GetTargetPrepared()
	m.port = prepared.GetPort()
	if m.port == 0 || prepared.GetDiskPort() == 0 {
		m.t.Fatalf("the target is not prepared: %v", prepared)
	}
	return prepared.GetDiskPort()
}

func (m *move) copyDisksCommand(disks uint32, bandwidth fleet.BytesPerSecond) *godwitv1.Command {
	c := m.copyCommand(bandwidth)
	c.GetStartCopy().DiskPort = disks
	return c
}

// copies tells what copies of the VM's disks a host has, as STATE@EPOCH.
func (h *testHost) copies() (text string) {
	h.t.Helper()
	copies, err := h.agent.disks.Of(testUID)
	if err != nil {
		h.t.Error(err)
	}
	for _, one := range copies {
		text += fmt.Sprintf("%s@%d ", one.State, one.Epoch)
	}
	return strings.TrimSpace(text)
}

func (h *testHost) checkCopies(when, want string) {
	h.t.Helper()
	if got := h.copies(); got != want {
		h.t.Errorf("%s %s has the copies %q, want %q", when, h.name, got, want)
	}
}

// A VM's local disk goes with it, and is found again by its next start; where it was
// it stays for a while, and no start takes it.
func TestLocalDisk(t *testing.T) {
	m := newLocalMove(t)
	m.source.checkCopies("started,", "good@1")
	disks := m.prepareDisks()
	m.target.checkCopies("prepared,", "filling@2")
	run := m.runCommand()
	m.grant(run)
	start := m.copyDisksCommand(disks, 0)
	m.source.sendCommand(start)
	m.target.awaitReport("running target", answers(run))
	m.target.diskIO(2, "read -P 17 0 4M")
	m.target.checkCopies("running,", "good@2")
	progress := m.source.awaitReport("progress of the disks", func(r *godwitv1.Report) bool { return r.GetCopyProgress().GetDiskTotalBytes() > 0 })
	if said := progress.GetCopyProgress(); said.GetPass() != 0 || said.GetDiskCopiedBytes() > said.GetDiskTotalBytes() {
		t.Errorf("the progress is told as %v", said)
	}
	m.source.awaitReport("measurement", answers(start))
	m.settle()
	m.source.checkCopies("left,", "old@1")

	if got := m.target.do(stopCommand(32, 2, 0)).GetInstance(); got.GetState() != "exited" {
		t.Fatalf("stop: %v", got)
	}
	m.target.checkCopies("stopped,", "good@2")
	again := m.booting(3)
	again.LocalEpoch = 2
	if got := m.source.do(startCommand(30, again)).GetInstance(); got.GetState() != "exited" || !strings.Contains(got.GetCause(), "run on elsewhere") {
		t.Errorf("the old host starts it: %v", got)
	}
	if got := m.target.do(startCommand(31, again)).GetInstance(); got.GetState() != "running" {
		t.Fatalf("start: %v", got)
	}
	m.target.diskIO(3, "read -P 17 0 4M")
	m.target.checkCopies("started again,", "good@3")

	remove := &godwitv1.Command{Subject: testVM, Sequence: 34, Op: &godwitv1.Command_RemoveDisks{RemoveDisks: &godwitv1.RemoveDisks{Vm: testVM, Uid: testUID}}}
	m.target.sendCommand(remove) // of a VM that runs, which nobody asks for
	if got := m.target.do(stopCommand(33, 3, 0)).GetInstance(); got.GetState() != "exited" {
		t.Fatalf("stop: %v", got)
	}
	m.target.checkCopies("stopped again,", "good@3")
	m.target.sendCommand(remove)
	m.target.awaitReport("removal", func(r *godwitv1.Report) bool { return r.GetDisksRemoved().GetUid() == testUID })
	m.target.checkCopies("deleted,", "")
}

// What is aborted leaves no copy at the target, and the source with its own; and an
// agent that comes new in the copy goes on with it, or ends it.
func TestLocalDiskAborted(t *testing.T) {
	m := newLocalMove(t)
	start := m.copyDisksCommand(m.prepareDisks(), 1<<20) // slow enough to be under way
	m.source.sendCommand(start)
	copied := func(r *godwitv1.Report) bool { return r.GetCopyProgress().GetDiskTotalBytes() > 0 }
	m.source.awaitReport("progress", copied)
	m.source.stop()
	m.source.start()
	m.target.stop()
	m.target.start()
	m.source.sendCommand(start)
	m.source.awaitReport("progress", copied)
	m.abort()
	m.target.checkCopies("released,", "")
	m.source.checkCopies("aborted,", "good@1")
	m.source.diskIO(1, "read -P 17 0 4M")
	if mirrors, err := m.source.instance(testVM, 1).Mirrors(t.Context()); err != nil || len(mirrors) > 0 {
		t.Errorf("mirrors are left: %v, %v", mirrors, err)
	}

	disks := m.prepareDisks()
	run := m.runCommand()
	m.grant(run)
	m.source.sendCommand(m.copyDisksCommand(disks, 0))
	m.target.awaitReport("running target", answers(run))
	m.target.diskIO(2, "read -P 17 0 4M")
	m.settle()
}

// The source gets its VM back after the commit, from a target that never ran, and goes
// on with its own copy.
func TestLocalDiskIsTakenBack(t *testing.T) {
	m := newLocalMove(t)
	disks := m.prepareDisks()
	waits := make(chan struct{})
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		close(waits)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if m.source.do(m.copyDisksCommand(disks, 0)).GetSwitchMeasured() == nil {
		t.Fatal("the copy failed")
	}
	receive(t, "commit", waits)
	if err := m.target.instance(testVM, 2).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	resume := m.resumeCommand()
	resume.GetResumeSource().NewEpoch = 3
	if got := m.source.do(resume); got.GetSourceResumed() == nil {
		t.Fatalf("resume: %v", got)
	}
	m.source.checkRunState(testVM, 3, "running")
	m.source.checkCopies("taken back,", "good@3")
	m.source.diskIO(3, "write -P 18 1M 1M")
	m.source.diskIO(3, "read -P 17 0 1M")
	if got := m.target.do(m.releaseCommand()); got.GetTargetReleased() == nil {
		t.Errorf("release: %v", got)
	}
	m.target.checkCopies("released,", "")
}

// Agents that come new when everything was sent end what the ones before have left,
// and the target runs with the disk.
func TestLocalDiskNewAgents(t *testing.T) {
	m := newLocalMove(t)
	disks := m.prepareDisks()
	waits := make(chan struct{}, 64)
	m.fleet.onCommit(func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		waits <- struct{}{}
		return nil, connect.NewError(connect.CodeUnavailable, nil)
	})
	start := m.copyDisksCommand(disks, 0)
	m.source.sendCommand(start)
	receive(t, "commit", waits)
	for _, h := range []*testHost{m.source, m.target} {
		h.stop()
		h.start()
	}
	m.source.sendCommand(start)
	run := m.runCommand()
	if got := m.target.do(run); got.GetTargetRunning() == nil {
		t.Fatalf("run: %v", got)
	}
	m.target.diskIO(2, "read -P 17 0 4M")
	m.target.checkCopies("running,", "good@2")
	m.settle()
	m.source.checkCopies("left,", "old@1")
}

// A target that is lost in the copy of the disk fails the migration with the cause,
// and nothing else.
func TestLocalDiskTargetLost(t *testing.T) {
	m := newLocalMove(t)
	m.source.sendCommand(m.copyDisksCommand(m.prepareDisks(), 1<<20))
	m.source.awaitReport("progress", func(r *godwitv1.Report) bool { return r.GetCopyProgress().GetDiskTotalBytes() > 0 })
	if err := m.target.instance(testVM, 2).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	failed := m.source.awaitReport("failure", func(r *godwitv1.Report) bool { return r.GetSourceFailed() != nil }).GetSourceFailed()
	if failed.GetGone() || !strings.Contains(failed.GetCause(), "copy disk data") {
		t.Errorf("the failure is told as %v", failed)
	}
	m.abort()
	m.source.diskIO(1, "write -P 18 1M 1M")
}

// A target that takes nothing any more fails the migration, too, and what the guest
// writes meanwhile goes on.
func TestLocalDiskTargetHangs(t *testing.T) {
	m := newLocalMove(t)
	m.source.diskIO(1, "write -P 19 4M 24M")
	m.source.sendCommand(m.copyDisksCommand(m.prepareDisks(), 8<<20))
	m.source.awaitReport("progress", func(r *godwitv1.Report) bool { return r.GetCopyProgress().GetDiskTotalBytes() > 0 })
	hung := m.target.instance(testVM, 2).PID()
	if err := syscall.Kill(hung, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	failed := m.source.awaitReport("failure", func(r *godwitv1.Report) bool { return r.GetSourceFailed() != nil }).GetSourceFailed()
	if failed.GetGone() || !strings.Contains(failed.GetCause(), "the target takes nothing for") {
		t.Errorf("the failure is told as %v", failed)
	}
	m.source.diskIO(1, "write -P 18 1M 1M")
	if err := syscall.Kill(hung, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	m.abort()
	m.source.diskIO(1, "read -P 19 4M 24M")
}

// Old copies go when their time has come.
func TestOldDisksAreRemoved(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	_ = f
	store := hosts[0].agent.disks
	old := localdisk.Copy{VM: testVM, UID: testUID, Epoch: 1, State: localdisk.Old, RemoveAt: time.Now().Add(-time.Second)}
	disks := []fleet.Disk{{Name: "data", Format: "raw", Size: fleet.MiB}}
	create := func(path, _ string, _ fleet.Bytes) error { return os.WriteFile(path, nil, 0o600) }
	if _, err := store.Make(old, disks, create); err != nil {
		t.Fatal(err)
	}
	hosts[0].agent.lookAtDisks()
	waitFor(t, "the removal", func() bool { return hosts[0].copies() == "" })
}
