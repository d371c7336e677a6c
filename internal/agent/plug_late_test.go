package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

// cardGone is the news of a card of which a guest has let go by itself.
func cardGone(r *godwitv1.Report) bool {
	return r.GetSequence() == 0 && r.GetHardwareChanged().GetRemoved()
}

// letGo has a guest let go of the card of the spare disk, and waits until it has.
func (h *testHost) letGo(epoch fleet.Epoch) {
	h.t.Helper()
	i := h.instance(testVM, epoch)
	if err := qmp.DeviceDel(h.t.Context(), i.Monitor(), qmp.DeviceDelArgs{ID: "disk0-card"}); err != nil {
		h.t.Fatal(err)
	}
	if err := i.Monitor().Execute(h.t.Context(), "system_reset", nil, nil); err != nil {
		h.t.Fatal(err)
	}
	waitFor(h.t, "the end of the card", func() bool {
		gone, err := i.Gone(h.t.Context())
		return err == nil && slices.Contains(gone, fleet.Slot(0x18))
	})
}

// newPlugMove starts a VM at the source that gets the spare disk, and prepares the
// target for both.
func newPlugMove(t *testing.T) *move {
	t.Helper()
	f, hosts := newFleet(t, "h1", "h2")
	m := f.moveOf(hosts)
	disk := m.source.spareDisk(0x18)
	m.source.run(firmware(1))
	m.source.checkChanged(changeCommand(101, &godwitv1.ChangeHardware{Disk: disk}), "")
	m.booting = func(epoch fleet.Epoch) *godwitv1.Instance {
		instance := firmware(epoch)
		instance.Spec.Disks = []*godwitv1.Disk{disk}
		return instance
	}
	m.prepare()
	return m
}

// checkLate checks that a host says once, after the migration, that the card is gone.
func (m *move) checkLate(h *testHost, epoch fleet.Epoch) {
	m.t.Helper()
	report := h.awaitReport("that the card is gone", cardGone)
	if report.GetHardwareChanged().GetSlot() != 0x18 || report.GetEpoch() != uint64(epoch) || h.count(cardGone) != 1 {
		m.t.Errorf("%s says %v, %d times", h.name, report, h.count(cardGone))
	}
	if disks := h.instance(testVM, epoch).Config().Disks; len(disks) != 0 {
		m.t.Errorf("it has %v", disks)
	}
}

// A card of which the guest lets go at the source while it is copied is missed when the
// migration is taken back.
func TestCardGoneBeforeAnAbort(t *testing.T) {
	m := newPlugMove(t)
	m.source.sendCommand(m.copyCommand(64 << 10))
	waitFor(t, "the copy", func() bool {
		machine := m.source.agent.find(machineKey{testVM, 1})
		machine.mu.Lock()
		defer machine.mu.Unlock()
		return machine.record.Role == source && machine.copying != nil
	})
	m.source.letGo(1)
	m.abort()
	m.checkLate(m.source, 1)
}

// And one at the target when that has finished.
func TestCardGoneBeforeTheEnd(t *testing.T) {
	m := newPlugMove(t)
	run := m.runCommand()
	m.grant(run)
	m.copyUntilSwitch()
	m.target.sendCommand(run)
	m.target.awaitReport("the target's run", answers(run))
	m.target.letGo(2)
	m.settle()
	m.checkLate(m.target, 2)
}

// As long as QEMU holds what belonged to a card, nobody gets its slot.
func TestCardThatLeavesSomething(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	h.checkChanged(changeCommand(101, &godwitv1.ChangeHardware{Disk: h.spareDisk(0x18)}), "")
	monitor := h.instance(testVM, 1).Monitor()
	execute := func(command string, arguments any) {
		t.Helper()
		if err := monitor.Execute(t.Context(), command, arguments, nil); err != nil {
			t.Fatal(err)
		}
	}
	execute("nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": filepath.Join(t.TempDir(), "nbd")}}})
	execute("block-export-add", map[string]any{"type": "nbd", "id": "hold", "node-name": "disk0"})
	h.letGo(1)
	m := h.agent.find(machineKey{testVM, 1})
	waitFor(t, "the look at the card", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.record.Gone) == 1
	})
	for _, agent := range []string{"the first", "the next"} {
		h.checkChanged(changeCommand(102, sparePort()), "") // whose answer comes after any news
		if n := h.count(cardGone); n != 0 {
			t.Errorf("%s agent has told the server %d times", agent, n)
		}
		h.stop()
		h.start()
	}
	monitor = h.instance(testVM, 1).Monitor()
	execute("block-export-del", map[string]any{"id": "hold"})
	h.awaitReport("that the card is gone", cardGone)
	h.has(0, 2)
}

// Storage that does not answer fails what needs it, and holds up nothing else.
func TestPlugOfAFileThatDoesNotAnswer(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	disk := h.spareDisk(0x18)
	disk.Path, disk.ReadOnly = filepath.Join(t.TempDir(), "hangs"), true
	if err := unix.Mkfifo(disk.GetPath(), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // who reads it waits for a writer
		if writer, err := os.OpenFile(disk.GetPath(), os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			_ = writer.Close()
		}
	})
	h.checkChanged(changeCommand(101, &godwitv1.ChangeHardware{Disk: disk}), fleet.Unavailable)
	h.checkChanged(changeCommand(102, sparePort()), "")
	h.has(0, 2)
}
