package agent

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/network"
)

func TestStartAndStop(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	h.checkRunState(testVM, 1, "running")
	h.checkGates("after the start", network.Pass)
	pid := h.instance(testVM, 1).PID()

	// The command comes again: it is answered, and not carried out.
	h.sendCommand(startCommand(1, firmware(1)))
	h.awaitReports(2, "second answer", answers(startCommand(1, firmware(1))))
	if again := h.instance(testVM, 1).PID(); again != pid {
		t.Errorf("the instance was started again: pid %d, then %d", pid, again)
	}

	answer := h.do(stopCommand(2, 1, 0))
	if got := answer.GetInstance(); got.GetState() != "exited" || got.GetVm() != testVM || got.GetUid() != testUID || got.GetEpoch() != 1 {
		t.Errorf("stop: %v", got)
	}
	h.checkNothingLeft()
	// And again, when there is nothing any more.
	h.sendCommand(stopCommand(2, 1, 0))
	if got := h.awaitReports(2, "second answer", answers(stopCommand(2, 1, 0))).GetInstance().GetState(); got != "absent" {
		t.Errorf("stop of what is gone: %q", got)
	}
	if n := h.count(func(r *godwitv1.Report) bool { return r.GetSequence() == 0 }); n != 0 {
		t.Errorf("%d reports that nobody asked for", n)
	}
}

// What waits behind a stop is not done with what that has removed: nobody would
// know of the instance that it starts.
func TestStartBehindAStop(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	m := h.agent.find(machineKey{testVM, 1})
	queued := make(chan struct{})
	m.work <- func() { <-queued }
	stop, start := stopCommand(2, 1, 0), startCommand(3, firmware(1))
	h.agent.command(t.Context(), stop)
	h.agent.command(t.Context(), start)
	close(queued)
	if got := h.awaitReport("answer", answers(stop)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	got := h.awaitReport("answer", answers(start)).GetInstance()
	if got.GetState() != "exited" {
		t.Errorf("start: %v", got)
	}
	checkContains(t, got.GetCause(), "h1 has had it at epoch 1")
	h.checkNothingLeft()
}

// As long as something is left in its folder an instance is not forgotten: the
// next one of its key has the same.
func TestFolderCannotBeRemoved(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	busy := filepath.Join(h.agent.instanceDir(machineKey{testVM, 1}), "busy")
	if err := os.Mkdir(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", busy, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(busy, unix.MNT_DETACH) })
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.shut()
	h.reopen()
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "exited" {
		t.Errorf("hello: %v", got)
	}
	if err := unix.Unmount(busy, 0); err != nil {
		t.Fatal(err)
	}
	h.sendCommand(forgetCommand(3, 1))
	waitFor(t, "the end of the folder", func() bool { return len(h.agent.all()) == 0 })
	h.checkNothingLeft()
}

// A stop with grace waits for a guest that does not react; one without
// overtakes it.
func TestStopOvertakes(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	began := time.Now()
	h.sendCommand(stopCommand(2, 1, time.Hour))
	m := h.agent.find(machineKey{testVM, 1})
	waitFor(t, "the first stop", m.isEnding)
	h.checkRunState(testVM, 1, "running")
	h.sendCommand(stopCommand(3, 1, 0))
	for _, sequence := range []uint64{2, 3} {
		if got := h.awaitReport("end", answers(stopCommand(sequence, 1, 0))).GetInstance().GetState(); got != "exited" && got != "absent" {
			t.Errorf("stop %d: %q", sequence, got)
		}
	}
	if took := time.Since(began); took > patience {
		t.Errorf("it took %v", took)
	}
	h.checkNothingLeft()
}

func TestGraceEnds(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	if got := h.do(stopCommand(2, 1, 50*time.Millisecond)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

func TestForget(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	h.sendCommand(forgetCommand(2, 1))
	waitFor(t, "the end of the instance", func() bool { return len(h.agent.all()) == 0 })
	waitFor(t, "the end of the folder", func() bool {
		_, err := os.Stat(h.agent.instanceDir(machineKey{testVM, 1}))
		return err != nil
	})
	h.checkNothingLeft()
	h.sendCommand(forgetCommand(2, 1)) // nothing answers, nothing breaks
	if got := h.do(stopCommand(3, 1, 0)).GetInstance().GetState(); got != "absent" {
		t.Errorf("the instance is %q", got)
	}
	if n := h.count(func(r *godwitv1.Report) bool { return r.GetSequence() == 2 }); n != 0 {
		t.Error("an order to forget was answered")
	}
}

// What an older VM has left is no reason to end a newer one of its name.
func TestForgetOfAnOlderVM(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	older := forgetCommand(2, 1)
	older.GetForgetInstance().Uid = "of an older VM"
	h.sendCommand(older)
	if got := h.do(startCommand(3, firmware(1))).GetInstance().GetState(); got != "running" {
		t.Errorf("the instance is %q", got)
	}
}

// It may have been started since it was said to have ended.
func TestForgetOfAnEndedOneLeavesOneThatLives(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	ended := forgetCommand(2, 1)
	ended.GetForgetInstance().Ended = true
	h.sendCommand(ended)
	if got := h.do(startCommand(3, firmware(1))).GetInstance().GetState(); got != "running" {
		t.Errorf("the instance is %q", got)
	}
}

// A session that opens while QEMU is being started must not say of the instance
// that it has ended: what an ended one has left is removed.
func TestHelloDuringAStart(t *testing.T) {
	m := newMove(t)
	pipe := filepath.Join(m.fleet.dir, "go")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(m.target.qemu)
	if err != nil {
		t.Fatal(err)
	}
	waiting := strings.Replace(string(text), "\n", "\nread line < "+pipe+"\n", 1)
	if err := os.WriteFile(m.target.qemu, []byte(waiting), 0o700); err != nil {
		t.Fatal(err)
	}
	prepare := m.prepareCommand()
	m.target.sendCommand(prepare)
	goOn, err := os.OpenFile(pipe, os.O_WRONLY, 0) // when QEMU's start waits
	if err != nil {
		t.Fatal(err)
	}
	m.target.shut()
	m.target.reopen()
	said := m.target.hello().GetInstances()
	if len(said) != 1 || said[0].GetState() != "incoming" {
		t.Errorf("the session says %v", said)
	}
	goOn.WriteString("\n")
	goOn.Close()
	if answer := m.target.awaitReport("answer", answers(prepare)); answer.GetTargetPrepared() == nil {
		t.Errorf("answer %v", answer)
	}
	m.target.do(m.releaseCommand())
	m.target.checkNothingLeft()
}

// A guest that powers itself off is news; a start cannot revive it.
func TestGuestPowersOff(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	instance := booting(t, f, 1, bootsector.PoweringOff())
	h.run(instance)
	isEnd := func(r *godwitv1.Report) bool {
		return r.GetSequence() == 0 && r.GetInstance().GetState() == "exited"
	}
	news := h.awaitReport("end", isEnd)
	if got := news.GetInstance(); got.GetCause() != "guest-shutdown" || got.GetVm() != testVM || got.GetEpoch() != 1 || news.GetSubject() != testVM {
		t.Errorf("the end was told as %v", news)
	}
	// The news is told again in the next session, and Hello says it, too.
	h.shut()
	h.reopen()
	h.awaitReports(2, "news again", isEnd)
	if got := h.hello().GetInstances(); len(got) != 1 || got[0].GetState() != "exited" || got[0].GetCause() != "guest-shutdown" {
		t.Errorf("hello: %v", got)
	}
	if got := h.do(startCommand(2, instance)).GetInstance().GetState(); got != "exited" {
		t.Errorf("a start of the instance that has ended was answered with %q", got)
	}
	if got := h.do(stopCommand(3, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// What a failed start has made is removed, and nothing else.
func TestStartFailsCleanly(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	taken := network.TapConfig{
		Name: tapName(machineKey{testVM, 6}, "net1"), MAC: []byte{0x52, 0x54, 0, 0, 0, 9}, Gate: network.Gate{Mode: network.Closed, Epoch: 1},
	}
	for i, test := range []struct {
		name, cause string
		edit        func(*godwitv1.Instance)
	}{
		{"kernel missing", "kernel", func(i *godwitv1.Instance) { i.Spec.Boot = &godwitv1.Boot{Kernel: "/nowhere/vmlinuz"} }},
		{"disk missing", "disk root", func(i *godwitv1.Instance) {
			i.Spec.Disks = []*godwitv1.Disk{{Name: "root", Kind: "file", Path: "/nowhere/disk.raw", Format: "raw"}}
		}},
		{"network unknown", "network blue", func(i *godwitv1.Instance) { i.Networks = nil }},
		{"second port's network unknown", "network green", func(i *godwitv1.Instance) {
			i.Spec.Ports = append(i.Spec.Ports, &godwitv1.Port{Name: "net1", Network: "green", Mac: "52:54:00:77:00:02", Queues: 1})
		}},
		{"QEMU refuses", "no-such-machine", func(i *godwitv1.Instance) { i.Spec.Machine = "no-such-machine" }},
		{"tap's name taken", taken.Name, func(i *godwitv1.Instance) {
			i.Spec.Ports = append(i.Spec.Ports, &godwitv1.Port{Name: "net1", Network: testNetwork, Mac: "52:54:00:77:00:02", Queues: 1})
			i.Networks = append(i.Networks, &godwitv1.PortNetwork{Port: "net1", Vni: testVNI, Mtu: testMTU})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			instance := firmware(1)
			instance.Epoch = uint64(i + 1)
			test.edit(instance)
			if test.cause == taken.Name {
				tap, err := h.agent.config.Network.CreateTap(taken)
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if left := h.taps(); len(left) != 1 || left[0].Name != taken.Name {
						t.Errorf("taps: %+v, want only the one that was there", left)
					}
					if err := tap.Remove(); err != nil {
						t.Error(err)
					}
					h.checkNothingLeft()
				}()
			} else {
				defer h.checkNothingLeft()
			}
			got := h.do(startCommand(uint64(i+1), instance)).GetInstance()
			if got.GetState() != "exited" || got.GetEpoch() != uint64(i+1) {
				t.Errorf("the start was answered with %v", got)
			}
			checkContains(t, got.GetCause(), test.cause)
		})
	}
}

// A start that was said to have failed is not carried out when its command comes
// again, though it would succeed now: the VM may have been started elsewhere.
func TestFailedStartComesAgain(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	instance := firmware(1)
	instance.Spec.Boot = &godwitv1.Boot{Kernel: kernel}
	failed := h.do(startCommand(1, instance)).GetInstance()
	checkContains(t, failed.GetCause(), kernel)
	instance.Spec.Boot = nil // what was missing is there
	for i := range 2 {
		got := h.do(startCommand(uint64(2+i), instance)).GetInstance()
		if got.GetState() != "exited" || got.GetCause() != failed.GetCause() {
			t.Errorf("again: %v, want as before: %v", got, failed)
		}
		h.stop()
		h.start()
	}
	instance.Epoch = 2
	if got := h.do(startCommand(4, instance)).GetInstance(); got.GetState() != "running" {
		t.Errorf("at the next epoch: %v", got)
	}
	h.do(stopCommand(5, 2, 0))
	h.checkNothingLeft()
}

// The same when not all could be removed, and another agent has found the rest.
func TestFailedStartLeavesSomething(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	if err := h.instance(testVM, 1).Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	const cause = "it did not start"
	if err := h.agent.spent.note(testUID, 1, cause); err != nil {
		t.Fatal(err)
	}
	h.stop()
	h.start()
	if got := h.do(startCommand(2, firmware(1))).GetInstance(); got.GetState() != "exited" || got.GetCause() != cause {
		t.Errorf("again: %v, want %q", got, cause)
	}
	h.do(stopCommand(3, 1, 0))
	h.checkNothingLeft()
}

// A start that has failed is not said to have ended as long as nobody can tell what
// became of its QEMU.
func TestFailedStartThatMayRun(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	dir := h.agent.instanceDir(machineKey{testVM, 1})
	unknown := filepath.Join(dir, "instance.json")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(unknown, []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	instance := firmware(1)
	instance.Spec.Boot = &godwitv1.Boot{Kernel: "/nowhere/vmlinuz"}
	got := h.do(startCommand(1, instance)).GetInstance()
	if got.GetState() != "running" {
		t.Errorf("start: %v", got)
	}
	checkContains(t, got.GetCause(), "kernel")
	checkContains(t, got.GetCause(), "its record cannot be read")
	if got := h.do(stopCommand(2, 1, 0)).GetInstance(); got.GetState() != "running" {
		t.Errorf("stop: %v", got)
	}
	if err := os.Remove(unknown); err != nil {
		t.Fatal(err)
	}
	if got := h.do(stopCommand(3, 1, 0)).GetInstance(); got.GetState() != "exited" {
		t.Errorf("stop: %v", got)
	}
	h.checkNothingLeft()
}

// An agent that is told to end does not wait for a server that says nothing.
func TestEndWithSession(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		hosts[0].stop()
	}()
	select {
	case <-ended:
	case <-time.After(patience / 4): // less than the server's silence takes to be noticed
		t.Error("the agent does not end")
		hosts[0].shut()
		<-ended
	}
}

// When the agent has ended nothing acts for it any more, also no command that
// would take an hour; the next agent is told again.
func TestEndDuringCommand(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	h.sendCommand(stopCommand(2, 1, time.Hour))
	waitFor(t, "the stop", h.agent.find(machineKey{testVM, 1}).isEnding)
	h.stop()
	if n := goroutinesIn("(*machine).carryOut"); n != 0 {
		t.Errorf("%d machines are at work after their agents have ended", n)
	}
	if n := len(h.processes()); n != 1 {
		t.Errorf("%d instances run, want the one that had an hour", n)
	}
	h.start()
	h.checkRunState(testVM, 1, "running")
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	h.checkNothingLeft()
}

// A machine that is no more takes nothing of the agent.
func TestNothingRunsForWhatIsGone(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	before := goroutinesIn("(*machine)") // of agents that other tests have ended
	h.run(firmware(1))
	if n := goroutinesIn("(*machine)"); n <= before {
		t.Fatal("no goroutine of a machine was found: the test looks for the wrong ones")
	}
	if got := h.do(stopCommand(2, 1, 0)).GetInstance().GetState(); got != "exited" {
		t.Errorf("stop: %q", got)
	}
	waitFor(t, "the end of the machine's goroutines", func() bool { return goroutinesIn("(*machine)") <= before })
}

// goroutinesIn counts the goroutines with such a function on their stack.
func goroutinesIn(function string) (n int) {
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "agent."+function) {
			n++
		}
	}
	return n
}
