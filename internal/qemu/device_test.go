package qemu_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/qmp"
)

// tap makes a tap with the queues in a network namespace of its own, which
// goes with the last descriptor.
func tap(t *testing.T, name string, queues int) (fds []int) {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			for range queues {
				fd, err := openQueue(name, queues > 1)
				if err != nil {
					return err
				}
				fds = append(fds, fd)
			}
			return nil
		}()
	}()
	if err := <-result; err != nil {
		t.Skipf("this host gives no tap: %v", err)
	}
	t.Cleanup(func() { closeAll(fds) })
	return fds
}

func openQueue(name string, several bool) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if several {
		flags |= unix.IFF_MULTI_QUEUE
	}
	request.SetUint16(flags)
	return fd, unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func nonBlocking(t *testing.T, fd int) {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("descriptor %d: flags %#x, %v; want O_NONBLOCK", fd, flags, err)
	}
}

// withDevices gives an instance two taps, the second with two queues, and a
// disk of each format.
func withDevices(t *testing.T, c qemu.Config, disks []qemu.Disk) qemu.Config {
	t.Helper()
	c.NICs = []qemu.NIC{
		{Name: "lan", MAC: "52:54:00:00:00:01", MTU: 1450, FDs: tap(t, "gwt0", 1)},
		{Name: "wan", MAC: "52:54:00:00:00:02", FDs: tap(t, "gwt1", 2)},
	}
	c.Disks = disks
	return c
}

func images(t *testing.T) []qemu.Disk {
	t.Helper()
	dir := t.TempDir()
	raw, qcow := filepath.Join(dir, "raw,1"), filepath.Join(dir, "qcow")
	if err := os.WriteFile(raw, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("no qemu-img")
	}
	if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", qcow, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return []qemu.Disk{{Name: "root", Path: raw, Format: "raw"}, {Name: "a-name-longer-than-a-serial-number", Path: qcow, Format: "qcow2"}}
}

func TestDevices(t *testing.T) {
	for _, machine := range []string{"pc", "q35"} {
		t.Run(machine, func(t *testing.T) {
			eachQEMU(t, func(t *testing.T, binary string) {
				c := withDevices(t, config(t, binary), images(t))
				c.Machine = machine
				i, err := qemu.Start(within(t), c)
				if err != nil {
					t.Fatal(err)
				}
				resume(t, i)
				checkSlots(t, i)
				i.Close()
				i, err = qemu.Adopt(within(t), c.Dir, "")
				if err != nil {
					t.Fatal(err)
				}
				endWith(t, i)
				for at, nic := range c.NICs {
					fds, err := i.TapFDs(fmt.Sprintf("gwt%d", at))
					if err != nil || len(fds) != len(nic.FDs) {
						t.Errorf("%s: descriptors %v, %v; want %d", nic.Name, fds, err, len(nic.FDs))
					}
					for _, fd := range append(fds, nic.FDs...) {
						nonBlocking(t, fd)
					}
					closeAll(fds)
				}
				_, err = i.TapFDs("nonesuch")
				code(t, err, fleet.NotFound)
			})
		})
	}
}

// checkSlots checks that every card is where both ends of a migration and a
// later hot-plug expect it.
func checkSlots(t *testing.T, i *qemu.Instance) {
	t.Helper()
	buses, err := qmp.QueryPCI(within(t), i.Monitor())
	if err != nil || len(buses) != 1 {
		t.Fatalf("buses %+v, %v", buses, err)
	}
	found := make(map[string]int64)
	for _, device := range buses[0].Devices {
		found[device.QdevID] = device.Slot
	}
	for id, slot := range map[string]int64{"nic0": 0x10, "nic1": 0x11, "disk0": 0x18, "disk1": 0x19} {
		card, onPCI := found[id+"-card"]
		port, onPCIe := found[id+"-port"]
		if !(onPCI && card == slot) && !(onPCIe && port == slot) {
			t.Errorf("%s is not in slot %#x: %v", id, slot, found)
		}
	}
}

// TestMigrationWithDevices migrates with images that both ends have open:
// the target must not lock them before it runs, and the source must let go.
func TestMigrationWithDevices(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		disks := images(t)
		source := start(t, withDevices(t, config(t, binary), disks))
		resume(t, source)
		c := withDevices(t, config(t, binary), disks)
		c.Incoming = true
		target := start(t, c)
		migrate(t, source, target)
		resume(t, target)
		if err := target.Announce(within(t)); err != nil {
			t.Error(err)
		}
		if _, err := source.Resume(within(t)); err == nil {
			t.Error("the source runs again while the target has its disks locked")
		}
		status(t, target, "running")
	})
}
