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
	// RootPorts are the slots that have a root port though there may be no card in
	// them, on PCI Express: cards can be plugged into those only.
	RootPorts []fleet.Slot `json:",omitempty"`
	Incoming  bool         // the guest's state will come by Listen
	// Known is what Probe found of this Binary, if it was asked: it saves the
	// time that asking again takes. It is not used for another version.
	Known Abilities `json:"-"`
}

// Disk is one virtio disk. Without a slot, its place in Config.Disks gives that.
type Disk struct {
	Name     string
	Path     string // image file or block device
	Format   string // "raw" or "qcow2"
	ReadOnly bool
	Volume   *Volume    `json:",omitempty"` // instead of Path, and Format is "raw"
	Local    bool       `json:",omitempty"` // the image is this instance's own: a migration copies it
	Slot     fleet.Slot `json:",omitempty"`
}

// NIC is one virtio network card. Without a slot, its place in Config.NICs gives
// that.
type NIC struct {
	Name     string
	MAC      string
	MTU      int        // told to the guest; 0 tells nothing
	FDs      []int      // one per queue, of one tap; owned by the caller
	VhostFDs []int      // as many as FDs to use vhost-net, or none; owned by the caller
	Slot     fleet.Slot `json:",omitempty"`
}

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
	case len(c.NICs) > fleet.MaxPorts || len(c.Disks) > fleet.MaxDisks:
		return invalid("%d NICs and %d disks, at most %d and %d fit", len(c.NICs), len(c.Disks), fleet.MaxPorts, fleet.MaxDisks)
	case c.Kernel == "" && (c.Initrd != "" || c.Cmdline != ""):
		return invalid("an initrd or a command line needs a kernel")
	}
	for _, path := range []string{c.Dir, c.Kernel, c.Initrd, c.VolumeCreds} {
		if strings.Contains(path, ",") {
			return invalid("the path %q has a comma", path)
		}
	}
	if err := c.checkSlots(); err != nil {
		return invalid("%v", err)
	}
	for _, disk := range c.Disks {
		if err := disk.check(); err != nil {
			return invalid("disk %s: %v", disk.Name, err)
		}
	}
	for _, nic := range c.NICs {
		if err := nic.check(); err != nil {
			return invalid("port %s: %v", nic.Name, err)
		}
	}
	return nil
}

func (d Disk) check() error {
	if d.Format != "raw" && d.Format != "qcow2" {
		return fmt.Errorf("%q is no format: raw or qcow2", d.Format)
	}
	return nil
}

func (n NIC) check() error {
	if _, err := net.ParseMAC(n.MAC); err != nil {
		return fmt.Errorf("%q is no MAC address", n.MAC)
	}
	if len(n.FDs) == 0 || len(n.VhostFDs) != 0 && len(n.VhostFDs) != len(n.FDs) {
		return fmt.Errorf("%d tap queues and %d vhost descriptors", len(n.FDs), len(n.VhostFDs))
	}
	return nil
}
