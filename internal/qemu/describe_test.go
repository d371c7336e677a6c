package qemu_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

func describe(t *testing.T, i *qemu.Instance) fleet.Machine {
	t.Helper()
	began := time.Now()
	m, err := i.Describe(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d fields in %v", len(m), time.Since(began))
	return m
}

// described gives the configuration of an instance with a disk and a network card.
func described(t *testing.T, binary, image string) qemu.Config {
	t.Helper()
	c := config(t, binary)
	c.Machine, c.VCPUs = "pc-q35-7.2", 2
	c.Disks = []qemu.Disk{{Name: "root", Path: image, Format: "raw"}, {Name: "iso", Path: image, Format: "raw", ReadOnly: true}}
	c.Disks[1].Path = emptyImage(t, fleet.MiB)
	c.NICs = []qemu.NIC{{Name: "lan", MAC: "52:54:00:00:00:01", MTU: 1450, FDs: tap(t, "gwt0", 1)}}
	return c
}

func emptyImage(t *testing.T, size fleet.Bytes) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A target says before it has loaded, and after that, what its source says that runs,
// whichever of the two QEMUs either is; what is another at the target is found.
func TestDescribe(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		path := emptyImage(t, fleet.MiB)
		c := described(t, binary, path)
		source := start(t, c)
		resume(t, source)
		own := describe(t, source)
		want := map[string]string{
			fleet.MachineType: "pc-q35-7.2", fleet.MachineRAM: "64MiB", fleet.MachineVCPUs: "2", fleet.MachineCPU: "qemu64",
			"disk root size": "1MiB", "disk root access": "read-write", "disk iso access": "read-only", "NIC nic0 MAC": "52:54:00:00:00:01",
			"NIC nic0 MTU": "1450", "device nic0-card": "virtio-net-pci@nic0-port:00.0", "PCI 00:18.0": "1b36:000c disk0-port",
		}
		for field, value := range want {
			if own[field] != value {
				t.Errorf("%s is %q, want %q", field, own[field], value)
			}
		}
		for _, one := range []struct {
			what   string
			change func(*qemu.Config)
			fields []string
		}{
			{"nothing", func(*qemu.Config) {}, nil},
			{"QEMU", func(c *qemu.Config) { c.Binary = installed }, nil},
			{"memory", func(c *qemu.Config) { c.Memory *= 2 }, []string{"memory"}},
			{"vCPUs", func(c *qemu.Config) { c.VCPUs = 1 }, []string{"vCPUs"}},
			{"machine type", func(c *qemu.Config) { c.Machine = "pc-q35-7.1" }, []string{"machine type"}},
			{"a CPU flag", func(c *qemu.Config) { c.CPUModel += ",-sse3" }, []string{"CPU flags"}},
			{"a MAC address", func(c *qemu.Config) { c.NICs[0].MAC = "52:54:00:00:00:02" }, []string{"NIC nic0 MAC"}},
			{"an MTU", func(c *qemu.Config) { c.NICs[0].MTU = 1400 }, []string{"NIC nic0 MTU"}},
			{"a smaller disk", func(c *qemu.Config) { c.Disks[0].Path = emptyImage(t, fleet.MiB/2) }, []string{"disk root size"}},
			{"a larger disk", func(c *qemu.Config) { c.Disks[0].Path = emptyImage(t, 2*fleet.MiB) }, []string{"disk root size"}},
			{"a read-only disk", func(c *qemu.Config) { c.Disks[0].ReadOnly = true }, []string{"disk root access"}},
			{"no network card", func(c *qemu.Config) { c.NICs = nil }, []string{"NIC nic0 MAC", "PCI 00:10.0", "device nic0-card"}},
			{"a PCI slot", func(c *qemu.Config) { slices.Reverse(c.Disks) }, []string{"disk iso device", "disk root device"}},
		} {
			t.Run(one.what, func(t *testing.T) {
				to := described(t, binary, path)
				to.Incoming, to.Disks[1].Path, to.Known = true, c.Disks[1].Path, source.Abilities()
				one.change(&to)
				checkDiffers(t, own.Differences(describe(t, start(t, to))), one.fields)
			})
		}
	})
}

// checkDiffers wants a difference in each of the fields, and none if there are none.
func checkDiffers(t *testing.T, got []fleet.Difference, want []string) {
	t.Helper()
	if len(want) == 0 && len(got) > 0 {
		t.Errorf("the same machine differs: %v", got)
	}
	for _, field := range want {
		if !slices.ContainsFunc(got, func(d fleet.Difference) bool { return d.Field == field }) {
			t.Errorf("%s does not differ: %v", field, got)
		}
	}
}

// What a target says when it runs is what its source said.
func TestDescribeAfterMigration(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		path := emptyImage(t, fleet.MiB)
		source := start(t, described(t, binary, path))
		resume(t, source)
		own := describe(t, source)
		to := described(t, binary, path)
		to.Incoming, to.Disks[1].Path = true, source.Config().Disks[1].Path
		target := start(t, to)
		port, err := target.Listen(within(t), qemu.Incoming{Listen: loopback})
		if err != nil {
			t.Fatal(err)
		}
		fromSource, fromTarget := subscribe(t, source), subscribe(t, target)
		send(t, source, qemu.Outgoing{Address: netip.AddrPortFrom(loopback, port), DowntimeLimit: 10 * time.Millisecond})
		await(t, fromSource, changed(qemu.StatusPreSwitchover))
		if err := source.ContinueSwitch(within(t)); err != nil {
			t.Fatal(err)
		}
		await(t, fromTarget, changed(qemu.StatusCompleted))
		resume(t, target)
		checkDiffers(t, own.Differences(describe(t, target)), nil)
	})
}

// A volume is the same one at the target, by whatever epoch.
func TestDescribeVolume(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		v := serveVolumes(t)
		v.grant(1)
		v.grant(2)
		own := describe(t, start(t, v.config(binary, 1)))
		if own["disk root volume"] != "v" {
			t.Errorf("it has volume %q", own["disk root volume"])
		}
		checkDiffers(t, own.Differences(describe(t, start(t, v.config(binary, 2)))), nil)
	})
}
