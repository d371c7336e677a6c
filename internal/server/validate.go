package server

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// Limits of a VM's spec.
const (
	minMemory     = 16 * fleet.MiB
	maxMemory     = 16 * fleet.TiB
	memoryStep    = fleet.MiB
	maxCPUs       = 512
	maxIPs        = 8 // of one port
	maxQueues     = 8 // of one port
	maxCmdline    = 2048
	maxPathLength = 4096
)

// findings gathers what is wrong with a document.
type findings []fleet.FieldError

func (f *findings) add(path, problem string, arguments ...any) {
	*f = append(*f, fleet.FieldError{Path: path, Problem: fmt.Sprintf(problem, arguments...)})
}

// under tells whether anything is wrong at a field or within it.
func (f findings) under(field string) bool {
	return slices.ContainsFunc(f, func(e fleet.FieldError) bool { return strings.HasPrefix(e.Path, field) })
}

// surroundings are what a spec is checked against besides itself.
type surroundings struct {
	hosts    []fleet.Host
	networks map[fleet.NetworkName]fleet.Network

	volumeServers map[fleet.VolumeServerName]bool
}

// setDefaults fills in what a spec may leave out and that does not depend on
// where the VM starts.
func setDefaults(spec *fleet.VMSpec) {
	if spec.Machine == "" {
		spec.Machine = "q35"
	}
	for i := range spec.Disks {
		if spec.Disks[i].Kind == "" {
			spec.Disks[i].Kind = fleet.DiskFile
		}
		if spec.Disks[i].Kind == fleet.DiskVolume && spec.Disks[i].Format == "" {
			spec.Disks[i].Format = "raw"
		}
	}
	for i := range spec.Ports {
		if spec.Ports[i].Queues == 0 {
			spec.Ports[i].Queues = 1
		}
		spec.Ports[i].MAC = strings.ToLower(spec.Ports[i].MAC)
	}
}

// validateSpec gives everything that is wrong with a spec, by field. Whether
// addresses are free is found when they are taken.
func validateSpec(spec fleet.VMSpec, around surroundings) findings {
	var found findings
	if spec.CPUs < 1 || spec.CPUs > maxCPUs {
		found.add("cpus", "is %d, must be between 1 and %d", spec.CPUs, maxCPUs)
	}
	if spec.Memory < minMemory || spec.Memory > maxMemory {
		found.add("memory_bytes", "is %v, must be between %v and %v", spec.Memory, minMemory, maxMemory)
	} else if spec.Memory%memoryStep != 0 {
		found.add("memory_bytes", "is %d bytes, must be a whole number of MiB", uint64(spec.Memory))
	}
	found.checkModel(spec, around.hosts)
	found.checkBoot(spec)
	found.checkDisks(spec.Disks, around.volumeServers)
	found.checkPorts(spec.Ports, around.networks)
	found.checkSlots(spec)
	return found
}

// checkModel accepts what some host can do. A fleet without hosts cannot tell.
func (f *findings) checkModel(spec fleet.VMSpec, hosts []fleet.Host) {
	if len(hosts) == 0 {
		return
	}
	if !slices.ContainsFunc(hosts, func(h fleet.Host) bool {
		_, alias := h.QEMU.Aliases[spec.Machine]
		return alias || slices.Contains(h.QEMU.Machines, spec.Machine)
	}) {
		f.add("machine", "no host has a machine type %q", spec.Machine)
	}
	if spec.CPUModel != "" && !slices.ContainsFunc(hosts, func(h fleet.Host) bool {
		return slices.Contains(h.QEMU.CPUModels, spec.CPUModel)
	}) {
		f.add("cpu_model", "no host can run CPU model %q with all its features", spec.CPUModel)
	}
}

func (f *findings) checkBoot(spec fleet.VMSpec) {
	if spec.Boot == nil {
		if len(spec.Disks) == 0 {
			f.add("boot", "is missing, and there is no disk to boot from")
		}
		return
	}
	f.checkPath("boot.kernel", spec.Boot.Kernel)
	if spec.Boot.Initrd != "" {
		f.checkPath("boot.initrd", spec.Boot.Initrd)
	}
	if len(spec.Boot.Cmdline) > maxCmdline || strings.ContainsAny(spec.Boot.Cmdline, "\x00\n") {
		f.add("boot.cmdline", "must be one line of at most %d characters", maxCmdline)
	}
}

func (f *findings) checkPath(field, name string) {
	switch {
	case name == "":
		f.add(field, "is missing")
	case !path.IsAbs(name) || len(name) > maxPathLength || strings.ContainsRune(name, 0):
		f.add(field, "%q is not an absolute path", name)
	}
}

// checkSlots finds slots that are not for such a card, or have two.
func (f *findings) checkSlots(spec fleet.VMSpec) {
	seen := map[fleet.Slot]string{}
	check := func(at string, slot, first fleet.Slot, most int) {
		if slot < first || slot >= first+fleet.Slot(most) {
			f.add(at, "is %d, must be between %d and %d; left out, the server chooses", slot, first, int(first)+most-1)
		} else if other, twice := seen[slot]; twice {
			f.add(at, "is that of %s too", other)
		} else {
			seen[slot] = at
		}
	}
	for i, disk := range spec.Disks[:min(len(spec.Disks), fleet.MaxDisks)] {
		check(fmt.Sprintf("disks[%d].slot", i), fleet.DiskSlot(disk.Slot, i), fleet.FirstDiskSlot, fleet.MaxDisks)
	}
	for i, port := range spec.Ports[:min(len(spec.Ports), fleet.MaxPorts)] {
		check(fmt.Sprintf("ports[%d].slot", i), fleet.PortSlot(port.Slot, i), fleet.FirstPortSlot, fleet.MaxPorts)
	}
}

// checkName checks a name that must be the only one of its list.
func (f *findings) checkName(field, name string, seen map[string]int, list string, i int) {
	if err := fleet.CheckName(name); err != nil {
		f.add(field, "%v", err)
	} else if first, twice := seen[name]; twice {
		f.add(field, "%q is the name of %s[%d] too", name, list, first)
	} else {
		seen[name] = i
	}
}
