package qemu_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/witness"
	"godwit.dev/godwit/internal/qemu"
)

// bootWithin bounds a guest's boot, under emulation on a busy machine.
const bootWithin = 2 * time.Minute

// linux gives the instance a guest with drivers, which can be moved.
func linux(t *testing.T, c qemu.Config) qemu.Config {
	t.Helper()
	img, err := image.Locate()
	if err != nil {
		t.Skip(err)
	}
	c.Kernel, c.Initrd, c.Cmdline, c.Memory = img.Kernel, img.Initrd, witness.Args{}.CommandLine(), 192*fleet.MiB
	return c
}

// poll waits until a condition holds.
func poll(t *testing.T, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(limit)
	for !holds() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not %s within %v", what, limit)
		}
	}
}

func awaitBoot(t *testing.T, c qemu.Config) {
	t.Helper()
	poll(t, "booted", bootWithin, func() bool {
		said, _ := os.ReadFile(qemu.ConsoleLog(c.Dir))
		return bytes.Contains(said, []byte(`"ready"`))
	})
}

// awaitDriver waits until the guest's driver has taken a card.
func awaitDriver(t *testing.T, i *qemu.Instance, card string) {
	t.Helper()
	poll(t, "taken by the guest: "+card, patience, func() bool {
		var answer any
		path := map[string]string{"path": "/machine/peripheral/" + card + "/virtio-backend"}
		err := i.Monitor().Execute(within(t), "x-query-virtio-status", path, &answer)
		return err == nil && strings.Contains(fmt.Sprint(answer), "DRIVER_OK")
	})
}

func spare(t *testing.T, slot fleet.Slot) qemu.Disk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "spare")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return qemu.Disk{Name: "spare", Path: path, Format: "raw", Slot: slot}
}

// eachMachine runs the test with both kinds of machines, in every QEMU.
func eachMachine(t *testing.T, test func(t *testing.T, c qemu.Config)) {
	for _, machine := range []string{"pc", "q35"} {
		t.Run(machine, func(t *testing.T) {
			eachQEMU(t, func(t *testing.T, binary string) {
				c := linux(t, config(t, binary))
				c.Machine = machine
				test(t, c)
			})
		})
	}
}

// Cards come and go while the guest runs, keep their places, and an instance that is
// started with what is there then takes the guest over.
func TestPlug(t *testing.T) {
	eachMachine(t, func(t *testing.T, c qemu.Config) {
		c.Disks, c.NICs = []qemu.Disk{spare(t, 0), spare(t, 0)}, nil
		c.Disks[1].Name = "second"
		c.RootPorts = fleet.VMSpec{Machine: "q35", Disks: make([]fleet.Disk, 2)}.NewRootPorts()
		i, err := qemu.Start(within(t), c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = qemu.Kill(context.Background(), c.Dir, "") })
		resume(t, i)
		awaitBoot(t, c)
		disk, nic := spare(t, 0x1a), qemu.NIC{Name: "wan", MAC: "52:54:00:00:00:02", MTU: 1450, Slot: 0x10, FDs: tap(t, "gwt0", 2)}
		plug := func() {
			t.Helper()
			if err := i.PlugDisk(within(t), disk, ""); err != nil {
				t.Fatal(err)
			}
			if err := i.PlugNIC(within(t), nic); err != nil {
				t.Fatal(err)
			}
			awaitDriver(t, i, "disk2-card")
			awaitDriver(t, i, "nic0-card")
		}
		plug()
		plug() // which does nothing
		for _, slot := range []fleet.Slot{0x18, 0x1a, 0x10} {
			if err := i.Unplug(within(t), slot); err != nil {
				t.Fatalf("slot %x: %v", slot, err)
			}
		}
		checkCards(t, i, 0x19)
		nic.FDs = tap(t, "gwt1", 2) // the card has switched off the second queue of the other
		plug()
		i = adopted(t, i, c.Dir)
		checkCards(t, i, 0x10, 0x19, 0x1a)
		fds, err := i.TapFDs("gwt1")
		if err != nil || len(fds) != 2 {
			t.Errorf("the tap has the descriptors %v, %v", fds, err)
		}
		closeAll(fds)
		moveOn(t, i)
	})
}

func adopted(t *testing.T, i *qemu.Instance, dir string) *qemu.Instance {
	t.Helper()
	i.Close()
	again, err := qemu.Adopt(within(t), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	endWith(t, again)
	return again
}

// checkCards checks which slots have cards, by what is written down, and that QEMU
// has them all.
func checkCards(t *testing.T, i *qemu.Instance, want ...fleet.Slot) {
	t.Helper()
	var have []fleet.Slot
	c := i.Config()
	for at, nic := range c.NICs {
		have = append(have, fleet.PortSlot(nic.Slot, at))
	}
	for at, disk := range c.Disks {
		have = append(have, fleet.DiskSlot(disk.Slot, at))
	}
	slices.Sort(have)
	if !slices.Equal(have, want) {
		t.Errorf("cards in %x, want %x", have, want)
	}
	if gone, err := i.Gone(within(t)); err != nil || len(gone) > 0 {
		t.Errorf("QEMU lacks %x, %v", gone, err)
	}
}

// moveOn moves a guest to an instance that is started with what it has, and checks
// that it runs on there.
func moveOn(t *testing.T, source *qemu.Instance) {
	t.Helper()
	c := config(t, source.Config().Binary)
	dir, from := c.Dir, source.Config()
	c = from
	c.Dir, c.Incoming = dir, true
	c.NICs = slices.Clone(c.NICs)
	for at := range c.NICs {
		c.NICs[at].FDs = tap(t, fmt.Sprintf("gwt%d", at+8), len(c.NICs[at].FDs))
	}
	target := start(t, c)
	migrate(t, source, target)
	resume(t, target)
	said := func() int {
		text, _ := os.ReadFile(qemu.ConsoleLog(dir))
		return bytes.Count(text, []byte("\n"))
	}
	poll(t, "running on", patience, func() bool { return said() > 2 })
	checkCards(t, target, 0x10, 0x19, 0x1a)
	if err := target.Unplug(within(t), 0x1a); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(qemu.ConsoleLog(dir)); bytes.Contains(text, []byte("panic")) {
		t.Errorf("the guest says %s", text)
	}
}

// A card goes where QEMU has a place for it, and a failed try leaves nothing.
func TestPlugRefused(t *testing.T) {
	eachMachine(t, func(t *testing.T, c qemu.Config) {
		c.Kernel, c.Initrd, c.Cmdline = "", "", ""
		c.Disks = []qemu.Disk{spare(t, 0)}
		i := start(t, c)
		resume(t, i)
		code(t, i.PlugDisk(within(t), spare(t, 0x18), ""), fleet.Invalid)
		code(t, i.PlugDisk(within(t), spare(t, 0x10), ""), fleet.Invalid)
		missing := spare(t, 0x19)
		missing.Path += "-none"
		if fleet.OnPCIe(c.Machine) {
			code(t, i.PlugDisk(within(t), spare(t, 0x19), ""), fleet.Conflict)
		} else if err := i.PlugDisk(within(t), missing, ""); err == nil {
			t.Error("an image that is not there was plugged in")
		}
		checkCards(t, i, 0x18)
	})
}

// A guest that does not know of hot-plugging does not let go; when it is reset, the
// card goes after all.
func TestUnplugOfDeafGuest(t *testing.T) {
	eachMachine(t, func(t *testing.T, c qemu.Config) {
		c.Kernel, c.Initrd, c.Cmdline = "", "", ""
		c.Disks = []qemu.Disk{spare(t, 0)}
		i := start(t, c)
		resume(t, i)
		events := subscribe(t, i)
		for range 2 {
			soon, cancel := context.WithTimeout(t.Context(), time.Second)
			code(t, i.Unplug(soon, 0x18), fleet.Deadline)
			cancel()
		}
		checkCards(t, i, 0x18)
		if err := i.Monitor().Execute(within(t), "system_reset", nil, nil); err != nil {
			t.Fatal(err)
		}
		await(t, events, qemu.Event{Kind: qemu.CardGone})
		gone, err := i.Gone(within(t))
		if err != nil || !slices.Equal(gone, []fleet.Slot{0x18}) {
			t.Fatalf("gone are %x, %v", gone, err)
		}
		if err := i.DropCard(within(t), 0x18); err != nil {
			t.Fatal(err)
		}
		checkCards(t, i)
	})
}
