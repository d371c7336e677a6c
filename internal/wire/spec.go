package wire

import (
	"math"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// EncodeSpec gives the message of a VM's spec.
func EncodeSpec(spec fleet.VMSpec) *godwitv1.VMSpec {
	message := &godwitv1.VMSpec{
		Cpus:        clampInt32(spec.CPUs),
		MemoryBytes: uint64(spec.Memory),
		Machine:     spec.Machine,
		CpuModel:    spec.CPUModel,
	}
	if spec.Boot != nil {
		message.Boot = &godwitv1.Boot{
			Kernel:  spec.Boot.Kernel,
			Initrd:  spec.Boot.Initrd,
			Cmdline: spec.Boot.Cmdline,
		}
	}
	for _, disk := range spec.Disks {
		message.Disks = append(message.Disks, EncodeDisk(disk))
	}
	for _, port := range spec.Ports {
		message.Ports = append(message.Ports, EncodePort(port))
	}
	for _, slot := range spec.RootPorts {
		message.RootPorts = append(message.RootPorts, uint32(slot))
	}
	return message
}

// DecodeSpec is the inverse of EncodeSpec. Its errors are a *fleet.Error with
// code Invalid and paths such as "ports[0].ips[1]".
func DecodeSpec(message *godwitv1.VMSpec) (fleet.VMSpec, error) {
	var faults faults
	spec := decodeSpec(message, "", &faults)
	return spec, faults.err("read spec")
}

func decodeSpec(message *godwitv1.VMSpec, path string, faults *faults) fleet.VMSpec {
	if message == nil {
		faults.add(join(path, "spec"), "is missing")
		return fleet.VMSpec{}
	}
	spec := fleet.VMSpec{
		CPUs:     int(message.GetCpus()),
		Memory:   fleet.Bytes(message.GetMemoryBytes()),
		Machine:  message.GetMachine(),
		CPUModel: message.GetCpuModel(),
	}
	if boot := message.GetBoot(); boot != nil {
		spec.Boot = &fleet.Boot{Kernel: boot.GetKernel(), Initrd: boot.GetInitrd(), Cmdline: boot.GetCmdline()}
	}
	for _, disk := range message.GetDisks() {
		spec.Disks = append(spec.Disks, DecodeDisk(disk))
	}
	for i, port := range message.GetPorts() {
		spec.Ports = append(spec.Ports, decodePort(port, join(path, index("ports", i)), faults))
	}
	for _, slot := range message.GetRootPorts() {
		spec.RootPorts = append(spec.RootPorts, fleet.Slot(slot))
	}
	return spec
}

// EncodeDisk gives the message of a disk.
func EncodeDisk(disk fleet.Disk) *godwitv1.Disk {
	return &godwitv1.Disk{
		Name:     disk.Name,
		Kind:     string(disk.Kind),
		Path:     disk.Path,
		Format:   disk.Format,
		ReadOnly: disk.ReadOnly,
		Server:   string(disk.Server),
		Volume:   string(disk.Volume),
		Slot:     uint32(disk.Slot),

		SizeBytes: uint64(disk.Size),
	}
}

// DecodeDisk is the inverse of EncodeDisk.
func DecodeDisk(disk *godwitv1.Disk) fleet.Disk {
	return fleet.Disk{
		Name:     disk.GetName(),
		Kind:     fleet.DiskKind(disk.GetKind()),
		Path:     disk.GetPath(),
		Format:   disk.GetFormat(),
		ReadOnly: disk.GetReadOnly(),
		Server:   fleet.VolumeServerName(disk.GetServer()),
		Volume:   fleet.VolumeName(disk.GetVolume()),
		Slot:     fleet.Slot(disk.GetSlot()),
		Size:     fleet.Bytes(disk.GetSizeBytes()),
	}
}

// EncodePort gives the message of a port.
func EncodePort(port fleet.Port) *godwitv1.Port {
	return &godwitv1.Port{
		Name:    port.Name,
		Network: string(port.Network),
		Mac:     port.MAC,
		Ips:     encodeAddrs(port.IPs),
		Queues:  clampInt32(port.Queues),
		Slot:    uint32(port.Slot),
	}
}

// DecodePort is the inverse of EncodePort. Its errors are a *fleet.Error with code
// Invalid and paths such as "port.ips[1]".
func DecodePort(message *godwitv1.Port) (fleet.Port, error) {
	var faults faults
	port := decodePort(message, "port", &faults)
	return port, faults.err("read port")
}

func decodePort(port *godwitv1.Port, path string, faults *faults) fleet.Port {
	return fleet.Port{
		Name:    port.GetName(),
		Network: fleet.NetworkName(port.GetNetwork()),
		MAC:     port.GetMac(),
		IPs:     decodeAddrs(port.GetIps(), path+".ips", faults),
		Queues:  int(port.GetQueues()),
		Slot:    fleet.Slot(port.GetSlot()),
	}
}

func clampInt32(value int) int32 {
	return int32(min(max(value, math.MinInt32), math.MaxInt32))
}
