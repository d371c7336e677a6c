package fleet

import (
	"net/netip"
	"slices"
	"time"
)

// VM is the record of a virtual machine. It survives every move; the instance
// that embodies it is whoever Owner names.
type VM struct {
	Name      VMName      `json:"name"`
	UID       InstanceUID `json:"uid"`
	Spec      VMSpec      `json:"spec"`
	Owner     Owner       `json:"owner"`
	Phase     VMPhase     `json:"phase"`
	Cause     string      `json:"cause,omitempty"`
	Migration MigrationID `json:"migration,omitempty"` // holds the VM's lock while set
	Accel     string      `json:"accel,omitempty"`     // of its first start: "kvm" or "tcg"
	Created   time.Time   `json:"created"`

	QEMU  InstanceQEMU `json:"qemu,omitzero"`  // of the owner's instance, by its agent
	Local LocalData    `json:"local,omitzero"` // of a VM with disks of kind DiskLocal

	Change *Change `json:"change,omitempty"` // the last one of its hardware while it ran
}

// LocalData says which host has a VM's local disks.
type LocalData struct {
	Host HostName `json:"host,omitempty"` // "" before the first start
	// Epoch is the oldest that the host's copy may be of; 0 as long as no instance
	// is known to have run, so that there may be none.
	Epoch Epoch `json:"epoch,omitempty"`
	// Earlier are other hosts that may have copies of them, the latest last.
	Earlier []HostName `json:"earlier,omitempty"`
}

// maxEarlier bounds the hosts that are remembered: a copy that is not the VM's any more
// is removed after a time, so those of long ago have none.
const maxEarlier = 64

// Leaves notes that hosts may have copies, which are not those that count.
func (l *LocalData) Leaves(hosts ...HostName) {
	var earlier []HostName
	for _, host := range append(slices.Clone(l.Earlier), hosts...) {
		earlier = append(slices.DeleteFunc(earlier, func(known HostName) bool { return known == host }), host)
	}
	earlier = slices.DeleteFunc(earlier, func(host HostName) bool { return host == l.Host })
	l.Earlier = earlier[max(len(earlier)-maxEarlier, 0):]
}

// Owner is the only instance whose actions count: the one on Host at Epoch.
// Only a compare-and-swap in the store changes it.
type Owner struct {
	Host  HostName `json:"host,omitempty"`
	Epoch Epoch    `json:"epoch,omitempty"`
}

// VMPhase is what a VM is doing as its record says.
type VMPhase string

// The phases.
const (
	VMStopped  VMPhase = "stopped"  // no instance exists
	VMStarting VMPhase = "starting" // the owner's host was told to start it
	VMRunning  VMPhase = "running"  // the owner's host reported that it runs
	VMStopping VMPhase = "stopping" // the owner's host was told to end it
	VMFailed   VMPhase = "failed"   // Cause says why; it can be started or deleted
)

// InstanceState is what a host says of an instance. The values are sent, so they
// are never renamed.
type InstanceState string

// The states.
const (
	InstanceStarting InstanceState = "starting" // QEMU is being started, and not for a migration
	InstanceRunning  InstanceState = "running"  // or may be: nobody can tell that it is not
	InstancePaused   InstanceState = "paused"   // it can't run on; or a migration's source, which may stand still
	InstanceIncoming InstanceState = "incoming" // a migration's target that never ran
	InstanceExited   InstanceState = "exited"   // its process has ended, or it never began
	InstanceAbsent   InstanceState = "absent"   // the host has none
)

// VMSpec is what the customer asked for.
type VMSpec struct {
	CPUs     int    `json:"cpus"`
	Memory   Bytes  `json:"memory"`
	Machine  string `json:"machine"`  // QEMU machine type; versioned once the VM has run
	CPUModel string `json:"cpuModel"` // QEMU CPU model
	Boot     *Boot  `json:"boot,omitempty"`
	Disks    []Disk `json:"disks,omitempty"`
	Ports    []Port `json:"ports,omitempty"`

	// RootPorts are the slots that have a root port though there may be no card in
	// them, on PCI Express: those of its instance, and of every one it moves to.
	RootPorts []Slot `json:"rootPorts,omitempty"`
}

// Boot names a kernel to boot directly; every host must see the same files.
type Boot struct {
	Kernel  string `json:"kernel"`
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`
}

// DiskKind says where a disk's data are and what guards them.
type DiskKind string

// The kinds of disks.
const (
	// DiskFile is an image on a path that all its hosts share; QEMU's image lock
	// and the owner's epoch guard it.
	DiskFile DiskKind = "file"
	// DiskVolume is a volume of a volume server, which the lease of the owner's
	// epoch guards.
	DiskVolume DiskKind = "volume"
	// DiskLocal is an image that the VM's host keeps, and that moves with the VM. The
	// VM's record tells where it is.
	DiskLocal DiskKind = "local"
)

// Disk is one virtual disk.
type Disk struct {
	Name     string           `json:"name"`
	Kind     DiskKind         `json:"kind"`
	Path     string           `json:"path,omitempty"` // of a DiskFile
	Format   string           `json:"format"`         // "raw" or "qcow2"; a DiskVolume is "raw"
	ReadOnly bool             `json:"readOnly,omitempty"`
	Server   VolumeServerName `json:"server,omitempty"` // of a DiskVolume
	Volume   VolumeName       `json:"volume,omitempty"` // on Server
	Size     Bytes            `json:"size,omitempty"`   // of a DiskLocal
	Slot     Slot             `json:"slot,omitempty"`
}

// Port is one network interface. Its MAC and addresses stay the same for the
// VM's life.
type Port struct {
	Name    string       `json:"name"`
	Network NetworkName  `json:"network"`
	MAC     string       `json:"mac"`
	IPs     []netip.Addr `json:"ips,omitempty"`
	Queues  int          `json:"queues"`
	Slot    Slot         `json:"slot,omitempty"`
}

// Claim is what a VM takes of a host's capacity.
type Claim struct {
	CPUs   int   `json:"cpus"`
	Memory Bytes `json:"memory"`
}

// LocalDisks gives the disks of kind DiskLocal.
func (s VMSpec) LocalDisks() (disks []Disk) {
	for _, disk := range s.Disks {
		if disk.Kind == DiskLocal {
			disks = append(disks, disk)
		}
	}
	return disks
}

// Copied is how much a migration copies: memory and local disks.
func (s VMSpec) Copied() Bytes {
	all := s.Memory
	for _, disk := range s.LocalDisks() {
		all += disk.Size
	}
	return all
}

// Claim gives what an instance of the spec takes of a host.
func (s VMSpec) Claim() Claim { return Claim{CPUs: s.CPUs, Memory: s.Memory} }
