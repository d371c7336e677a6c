package wire

import (
	"math"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// EncodeVM gives the message of a VM whose record has the given version.
func EncodeVM(vm fleet.VM, version int64) *godwitv1.VM {
	return &godwitv1.VM{
		Name:      string(vm.Name),
		Uid:       string(vm.UID),
		Spec:      EncodeSpec(vm.Spec),
		Owner:     &godwitv1.Owner{Host: string(vm.Owner.Host), Epoch: uint64(vm.Owner.Epoch)},
		Phase:     string(vm.Phase),
		Cause:     vm.Cause,
		Migration: string(vm.Migration),
		Created:   encodeTime(vm.Created),
		Version:   version,
		Accel:     vm.Accel,

		QemuVersion:           vm.QEMU.Version,
		MigrationCapabilities: vm.QEMU.Capabilities,
		LocalHost:             string(vm.Local.Host),
		Change:                encodeChange(vm.Change),
	}
}

// DecodeVM is the inverse of EncodeVM. Its errors are a *fleet.Error with code
// Invalid and paths such as "spec.ports[0].ips[1]".
func DecodeVM(message *godwitv1.VM) (vm fleet.VM, version int64, err error) {
	var faults faults
	if message == nil {
		faults.add("vm", "is missing")
		return vm, 0, faults.err("read vm")
	}
	path := "spec"
	if message.GetSpec() == nil {
		path = ""
	}
	vm = fleet.VM{
		Name:      fleet.VMName(message.GetName()),
		UID:       fleet.InstanceUID(message.GetUid()),
		Spec:      decodeSpec(message.GetSpec(), path, &faults),
		Owner:     DecodeOwner(message.GetOwner()),
		Phase:     fleet.VMPhase(message.GetPhase()),
		Cause:     message.GetCause(),
		Migration: fleet.MigrationID(message.GetMigration()),
		Created:   decodeTime(message.GetCreated()),
		Accel:     message.GetAccel(),
		QEMU:      fleet.InstanceQEMU{Version: message.GetQemuVersion(), Capabilities: message.GetMigrationCapabilities()},
		Local:     fleet.LocalData{Host: fleet.HostName(message.GetLocalHost())},
		Change:    decodeChange(message.GetChange(), &faults),
	}
	return vm, message.GetVersion(), faults.err("read vm " + message.GetName())
}

// DecodeOwner reads an owner; a missing message is "no owner yet".
func DecodeOwner(message *godwitv1.Owner) fleet.Owner {
	return fleet.Owner{Host: fleet.HostName(message.GetHost()), Epoch: fleet.Epoch(message.GetEpoch())}
}

// HostStatus is what the server adds to a host's record when it shows it.
type HostStatus struct {
	State    string // "up", "down" or "cordoned"
	Reserved fleet.Claim
	Version  int64 // of the record
}

// EncodeHost gives the message of a host. The boot id is not part of it: it
// travels beside the host in an agent's Hello.
func EncodeHost(host fleet.Host, status HostStatus) *godwitv1.Host {
	message := &godwitv1.Host{
		Name:                string(host.Name),
		Address:             encodeAddr(host.Address),
		State:               status.State,
		Cpus:                clampInt32(host.CPUs),
		MemoryBytes:         uint64(host.Memory),
		CpusReserved:        clampInt32(status.Reserved.CPUs),
		MemoryReservedBytes: uint64(status.Reserved.Memory),
		QemuVersion:         host.QEMU.Version,
		Accel:               host.QEMU.Accel,
		Machines:            host.QEMU.Machines,
		CpuModels:           host.QEMU.CPUModels,

		MigrationCapabilities: host.QEMU.Capabilities,
		PeerPort:              uint32(host.PeerPort),
		MachineAliases:        host.QEMU.Aliases,
		AgentVersion:          host.Version,
		Seen:                  encodeTime(host.Seen),
		Cordoned:              host.Cordoned,
		Version:               status.Version,
	}
	if !host.Networks.Equal(fleet.HostNetworks{}) {
		message.Networks = EncodeHostNetworks(host.Networks)
	}
	return message
}

// DecodeHost is the inverse of EncodeHost. Its errors are a *fleet.Error with
// code Invalid; an address that is not set is not an error.
func DecodeHost(message *godwitv1.Host) (fleet.Host, HostStatus, error) {
	var faults faults
	if message == nil {
		faults.add("host", "is missing")
		return fleet.Host{}, HostStatus{}, faults.err("read host")
	}
	host := fleet.Host{
		Name:     fleet.HostName(message.GetName()),
		CPUs:     int(message.GetCpus()),
		Memory:   fleet.Bytes(message.GetMemoryBytes()),
		Cordoned: message.GetCordoned(),
		PeerPort: uint16(message.GetPeerPort()),
		Version:  message.GetAgentVersion(),
		Seen:     decodeTime(message.GetSeen()),
		QEMU: fleet.QEMUFeatures{
			Version:   message.GetQemuVersion(),
			Accel:     message.GetAccel(),
			Machines:  message.GetMachines(),
			Aliases:   message.GetMachineAliases(),
			CPUModels: message.GetCpuModels(),

			Capabilities: message.GetMigrationCapabilities(),
		},
		Networks: DecodeHostNetworks(message.GetNetworks()),
	}
	if text := message.GetAddress(); text != "" {
		host.Address = decodeAddr(text, "address", &faults)
	}
	if message.GetPeerPort() > math.MaxUint16 {
		faults.add("peer_port", "is not a port")
	}
	status := HostStatus{
		State: message.GetState(),
		Reserved: fleet.Claim{
			CPUs:   int(message.GetCpusReserved()),
			Memory: fleet.Bytes(message.GetMemoryReservedBytes()),
		},
		Version: message.GetVersion(),
	}
	return host, status, faults.err("read host " + message.GetName())
}

// encodeTime gives nil for the zero time, which stands for "never".
func encodeTime(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at)
}

func decodeTime(message *timestamppb.Timestamp) time.Time {
	if message == nil {
		return time.Time{}
	}
	return message.AsTime()
}
