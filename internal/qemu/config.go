package qemu

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// Config describes an instance. Source and target of a migration must agree
// in everything but Epoch, Dir, Boot, Binary, Accel, the paths of local disks, the
// NICs' descriptors, Incoming and Known.
type Config struct {
	VM       fleet.VMName
	UID      fleet.InstanceUID
	Epoch    fleet.Epoch
	Dir      string // run directory of this instance alone; it exists
	Boot     string `json:",omitempty"` // the host's present boot id, or "" if it does not matter
	Binary   string // the QEMU to run, a path or a name in PATH
	Accel    string // "kvm" or "tcg"
	Machine  string // versioned machine type
	CPUModel string
	VCPUs    int
	Memory   fleet.Bytes // whole MiB
	Kernel   string      // to boot directly, or "" to boot from the disks
	Initrd   string      // with Kernel, may be ""
	Cmdline  string      // with Kernel
	Disks    []Disk
	// VolumeCreds is the folder of ca-cert.pem, client-cert.pem and client-key.pem,
	// with which the servers of volumes are reached; "" without any.
	VolumeCreds string `json:",omitempty"`
	NICs        []NIC
	Incoming    bool // the guest's state will come by Listen
	// Known is what Probe found of this Binary, if it was asked: it saves the
	// time that asking again takes. It is not used for another version.
	Known Abilities `json:"-"`
}

// Disk is one virtio disk. Its place in Config.Disks is its PCI address.
type Disk struct {
	Name     string
	Path     string // image file or block device
	Format   string // "raw" or "qcow2"
	ReadOnly bool
	Volume   *Volume `json:",omitempty"` // instead of Path, and Format is "raw"
	Local    bool    `json:",omitempty"` // the image is this instance's own: a migration copies it
}

// NIC is one virtio network card. Its place in Config.NICs is its PCI address.
type NIC struct {
	Name     string
	MAC      string
	MTU      int   // told to the guest; 0 tells nothing
	FDs      []int // one per queue, of one tap; owned by the caller
	VhostFDs []int // as many as FDs to use vhost-net, or none; owned by the caller
}

// The PCI slots: network cards from 0x10 on, disks from 0x18 on. Slot 0x1f is
// the chipset's on q35.
const (
	firstNICSlot  = 0x10
	firstDiskSlot = 0x18
	maxNICs       = 8
	maxDisks      = 7
)

// The files of a run directory.
const (
	monitorSocket = "qmp.sock"
	consoleSocket = "console.sock"
	consoleLog    = "console.log"
	logFile       = "qemu.log"
	pidFile       = "qemu.pid"
	recordFile    = "instance.json"
)

// ConsoleLog is the file of everything that the instance of a run directory has
// said on its serial console.
func ConsoleLog(dir string) string { return filepath.Join(dir, consoleLog) }

// ConsoleSocket is the Unix socket of that console. QEMU serves one connection at
// a time, and the guest stands still on its console while that is not read.
func ConsoleSocket(dir string) string { return filepath.Join(dir, consoleSocket) }

// maxSocketPath is the room in a socket address (unix(7), sun_path).
const maxSocketPath = 107

// check finds what can never work.
func (c Config) check() error {
	invalid := func(format string, args ...any) error {
		return &fleet.Error{Code: fleet.Invalid, Op: "start QEMU", Subject: "vm " + string(c.VM), Cause: fmt.Sprintf(format, args...)}
	}
	socket := filepath.Join(c.Dir, consoleSocket)
	switch {
	case len(socket) > maxSocketPath:
		return invalid("the path of %s is longer than %d bytes", socket, maxSocketPath)
	case c.Accel != "kvm" && c.Accel != "tcg":
		return invalid("%q is no accelerator: kvm or tcg", c.Accel)
	case c.Machine == "" || c.CPUModel == "":
		return invalid("machine type and CPU model must be named")
	case c.VCPUs < 1:
		return invalid("%d vCPUs", c.VCPUs)
	case c.Memory < fleet.MiB || c.Memory%fleet.MiB != 0:
		return invalid("memory of %d bytes is not a whole number of MiB", uint64(c.Memory))
	case len(c.NICs) > maxNICs || len(c.Disks) > maxDisks:
		return invalid("%d NICs and %d disks, at most %d and %d fit", len(c.NICs), len(c.Disks), maxNICs, maxDisks)
	case c.Kernel == "" && (c.Initrd != "" || c.Cmdline != ""):
		return invalid("an initrd or a command line needs a kernel")
	}
	for _, path := range []string{c.Dir, c.Kernel, c.Initrd, c.VolumeCreds} {
		if strings.Contains(path, ",") {
			return invalid("the path %q has a comma", path)
		}
	}
	for _, disk := range c.Disks {
		if disk.Format != "raw" && disk.Format != "qcow2" {
			return invalid("disk %s: %q is no format: raw or qcow2", disk.Name, disk.Format)
		}
	}
	for _, nic := range c.NICs {
		if _, err := net.ParseMAC(nic.MAC); err != nil {
			return invalid("port %s: %q is no MAC address", nic.Name, nic.MAC)
		}
		if len(nic.FDs) == 0 || len(nic.VhostFDs) != 0 && len(nic.VhostFDs) != len(nic.FDs) {
			return invalid("port %s: %d tap queues and %d vhost descriptors", nic.Name, len(nic.FDs), len(nic.VhostFDs))
		}
	}
	return nil
}
