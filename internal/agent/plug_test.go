package agent

import (
	"os"
	"path/filepath"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qmp"
)

func changeCommand(sequence uint64, change *godwitv1.ChangeHardware) *godwitv1.Command {
	change.Vm = testVM
	return &godwitv1.Command{
		Subject: testVM, Epoch: 1, Sequence: sequence, Op: &godwitv1.Command_ChangeHardware{ChangeHardware: change},
	}
}

func (h *testHost) spareDisk(slot uint32) *godwitv1.Disk {
	h.t.Helper()
	path := filepath.Join(h.fleet.dir, "spare")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return &godwitv1.Disk{Name: "spare", Kind: "file", Path: path, Format: "raw", Slot: slot}
}

func sparePort() *godwitv1.ChangeHardware {
	return &godwitv1.ChangeHardware{
		Port:    &godwitv1.Port{Name: "net1", Network: testNetwork, Mac: "52:54:00:77:00:02", Queues: 2, Slot: 0x11},
		Network: &godwitv1.PortNetwork{Port: "net1", Vni: testVNI, Mtu: testMTU},
	}
}

// checkChanged checks the answer to a change.
func (h *testHost) checkChanged(command *godwitv1.Command, code fleet.Code) {
	h.t.Helper()
	if got := h.do(command).GetHardwareChanged(); got == nil || fleet.Code(got.GetCode()) != code {
		h.t.Errorf("%v is answered by %v, want code %q", command, got, code)
	}
}

// has checks how many disks and NICs the instance has, and that QEMU lacks none.
func (h *testHost) has(disks, nics int) {
	h.t.Helper()
	i := h.instance(testVM, 1)
	if c := i.Config(); len(c.Disks) != disks || len(c.NICs) != nics {
		h.t.Errorf("it has the disks %+v and NICs %+v", c.Disks, c.NICs)
	}
	if gone, err := i.Gone(h.t.Context()); err != nil || len(gone) > 0 {
		h.t.Errorf("QEMU lacks %v, %v", gone, err)
	}
}

// reset resets the guest, which is when firmware lets go of cards.
func (h *testHost) reset() {
	h.t.Helper()
	if err := h.instance(testVM, 1).Monitor().Execute(h.t.Context(), "system_reset", nil, nil); err != nil {
		h.t.Error(err)
	}
}

// A disk and a port are plugged in and out, each command at most once in effect,
// whichever agent is there.
func TestChangeHardware(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	addDisk := changeCommand(101, &godwitv1.ChangeHardware{Disk: h.spareDisk(0x18)})
	h.checkChanged(addDisk, "")
	h.checkChanged(changeCommand(102, sparePort()), "")
	h.has(1, 2)
	h.checkGates("with the port", network.Pass, network.Pass)

	h.stop()
	h.start()
	h.has(1, 2)
	h.checkGates("adopted", network.Pass, network.Pass)
	h.sendCommand(addDisk) // an old one
	h.checkChanged(changeCommand(102, sparePort()), "")
	h.has(1, 2)

	for at, change := range []*godwitv1.ChangeHardware{{Disk: h.spareDisk(0x18)}, sparePort()} {
		change.Remove = true
		remove := changeCommand(uint64(103+at), change)
		h.sendCommand(remove)
		waitFor(t, "the end of the card", func() bool {
			h.reset() // nothing tells when the guest was asked
			return h.count(answers(remove)) > 0
		})
		if got := h.awaitReport("answer", answers(remove)).GetHardwareChanged(); got.GetCode() != "" {
			t.Errorf("removal: %v", got)
		}
	}
	h.has(0, 1)
	h.checkGates("without the port", network.Pass)
	h.do(stopCommand(2, 1, 0))
	h.checkNothingLeft()
}

// An agent that ends between two steps leaves them to the next one: what was being
// added is added by it, or is gone.
func TestChangeHardwareCutOff(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	add := changeCommand(101, sparePort())
	m := h.agent.find(machineKey{testVM, 1})
	// As far as it comes before QEMU has the card.
	err := m.inTurn(t.Context(), func() error {
		if err := m.notePlug(plugRecord{Sequence: 101, Slot: 0x11}); err != nil {
			return err
		}
		one, err := pluggedOf(add.GetChangeHardware())
		if err != nil {
			return err
		}
		record := m.portRecord(*one.port, add.GetChangeHardware().GetNetwork())
		next := m.record
		next.Ports = append(next.Ports, record)
		if err := m.note(next); err != nil {
			return err
		}
		return m.makePort(record, add.GetChangeHardware().GetNetwork(), network.Gate{Mode: network.Pass, Epoch: 1})
	})
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	h.start()
	h.has(0, 1)
	h.checkChanged(add, "")
	h.has(0, 2)
	h.checkGates("with the port", network.Pass, network.Pass)
}

// What can't be plugged in leaves nothing behind, and a guest that lets go of a card
// when nobody waits for that is heard.
func TestCardsThatDoNotStay(t *testing.T) {
	_, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(firmware(1))
	missing := h.spareDisk(0x18)
	missing.Path += "-none"
	h.checkChanged(changeCommand(101, &godwitv1.ChangeHardware{Disk: missing}), fleet.Unavailable)
	taken := sparePort()
	taken.Port.Slot = 0x10
	if got := h.do(changeCommand(102, taken)).GetHardwareChanged(); got.GetCode() == "" {
		t.Error("a port was plugged into a slot that is taken")
	}
	h.has(0, 1)
	h.checkGates("as before", network.Pass)

	h.checkChanged(changeCommand(103, &godwitv1.ChangeHardware{Disk: h.spareDisk(0x18)}), "")
	if err := qmp.DeviceDel(t.Context(), h.instance(testVM, 1).Monitor(), qmp.DeviceDelArgs{ID: "disk0-card"}); err != nil {
		t.Fatal(err)
	}
	h.reset()
	gone := func(r *godwitv1.Report) bool { return r.GetSequence() == 0 && r.GetHardwareChanged().GetRemoved() }
	if got := h.awaitReport("that the card is gone", gone).GetHardwareChanged().GetSlot(); got != 0x18 {
		t.Errorf("the card in slot %x is gone", got)
	}
	h.has(0, 1)
	h.stop()
	h.start()
	h.awaitReports(2, "that, again", gone)
}
