package placement

import (
	"fmt"
	"slices"

	"godwit.dev/godwit/internal/fleet"
)

// refuse gives every reason why the candidate cannot take the VM; none means
// that it fits.
func refuse(candidate Candidate, request Request) (why []string) {
	host := candidate.Host
	if host.Name == request.Source {
		why = append(why, "it is where the VM is now")
	}
	if !candidate.Up {
		why = append(why, "it is down: its agent has no session with the server")
	}
	if host.Cordoned {
		why = append(why, "it is cordoned")
	}
	if local := request.VM.Local.Host; local != "" && local != host.Name && request.Source == "" && len(request.VM.Spec.LocalDisks()) > 0 {
		why = append(why, fmt.Sprintf("the VM's local disks are on %s", local))
	}
	why = append(why, refuseCapacity(candidate, request.VM)...)
	why = append(why, refuseFeatures(host.QEMU, request.VM)...)
	if !host.Address.IsValid() && (len(request.VM.Spec.Ports) > 0 || request.Source != "") {
		why = append(why, "it has no address at which other hosts reach it")
	}
	return why
}

func refuseCapacity(candidate Candidate, vm fleet.VM) (why []string) {
	taken, _ := reservedByOthers(candidate.Ledger, vm.UID)
	if free := max(candidate.Host.CPUs-taken.CPUs, 0); vm.Spec.CPUs > free {
		why = append(why, fmt.Sprintf("%d of %d CPUs are free, the VM needs %d", free, candidate.Host.CPUs, vm.Spec.CPUs))
	}
	free := candidate.Host.Memory - min(taken.Memory, candidate.Host.Memory)
	if vm.Spec.Memory > free {
		why = append(why, fmt.Sprintf("%s of %s memory are free, the VM needs %s", free, candidate.Host.Memory, vm.Spec.Memory))
	}
	return why
}

func refuseFeatures(qemu fleet.QEMUFeatures, vm fleet.VM) (why []string) {
	if vm.Accel != "" && vm.Accel != qemu.Accel {
		why = append(why, fmt.Sprintf("it runs VMs with %s, the VM was started with %s", orNothing(qemu.Accel), vm.Accel))
	}
	if !hasMachine(qemu, vm) {
		why = append(why, fmt.Sprintf("its QEMU %s has no machine type %s", qemu.Version, vm.Spec.Machine))
	}
	if model := CPUModel(vm.Spec, qemu); !slices.Contains(qemu.CPUModels, model) {
		why = append(why, fmt.Sprintf("it cannot run CPU model %s with all its features", model))
	}
	return why
}

// CPUModel is the CPU model that a VM of the spec has when its first host is
// one with these features: the one asked for or, if none was, a modest one that
// nearly every other host of that kind has, too.
func CPUModel(spec fleet.VMSpec, qemu fleet.QEMUFeatures) string {
	switch {
	case spec.CPUModel != "":
		return spec.CPUModel
	case qemu.Accel == "kvm":
		return "Westmere"
	}
	return "qemu64"
}

// hasMachine takes an alias such as "q35" only for a VM that never ran: what a
// guest has seen once is one exact version, and an alias may mean another one
// on each host.
func hasMachine(qemu fleet.QEMUFeatures, vm fleet.VM) bool {
	if slices.Contains(qemu.Machines, vm.Spec.Machine) {
		return true
	}
	_, alias := qemu.Aliases[vm.Spec.Machine]
	return alias && vm.Accel == ""
}

// reservedByOthers leaves out what the VM itself has reserved already, so that
// placing it twice does not count it twice.
func reservedByOthers(ledger fleet.Ledger, vm fleet.InstanceUID) (sum fleet.Claim, others int) {
	for uid, claim := range ledger.Claims {
		if uid == vm && vm != "" {
			continue
		}
		sum.CPUs += claim.CPUs
		sum.Memory += claim.Memory
		others++
	}
	return sum, others
}

func orNothing(name string) string {
	if name == "" {
		return "no known accelerator"
	}
	return name
}
