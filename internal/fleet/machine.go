package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Machine is what a guest sees of the machine that it runs on, as the QEMU of one
// instance says: a value for each field, such as "memory": "512MiB". A value that
// lists several things has them apart by spaces. Nil: nobody has asked.
type Machine map[string]string

// Fields of a machine that are compared in a way of their own, or looked at by
// others. The names are stored and shown.
const (
	MachineType  = "machine type"
	MachineCPU   = "CPU model"
	MachineFlags = "CPU flags"  // by name, of those that are on
	MachineWords = "CPUID bits" // the same by register, with what has no name
	MachineRAM   = "memory"
	MachineVCPUs = "vCPUs"
	// MachineDisk and MachineNIC begin the fields of a disk and of a network card.
	MachineDisk = "disk "
	MachineNIC  = "NIC "
	// MachineSize ends the field of a disk's size.
	MachineSize = " size"
)

// Nothing is the value of a field that only the other machine has.
const Nothing = "none"

// Difference is a field in which the machines of a source and a target differ.
type Difference struct {
	Field  string `json:"field"`
	Source string `json:"source"`
	Target string `json:"target"`
}

// String names the field and both values.
func (d Difference) String() string {
	return fmt.Sprintf("%s is %s at the source and %s at the target", d.Field, d.Source, d.Target)
}

// Differences compares the machine of a source with that of its target, field by
// field in their order. Of values that list things it gives those that only one has.
// A machine that nobody has asked for differs in nothing.
func (m Machine) Differences(target Machine) (all []Difference) {
	if m == nil || target == nil {
		return nil
	}
	fields := maps.Clone(m)
	maps.Copy(fields, target)
	// A flag is named where it has a name; QEMU's own flags that no guest sees have
	// names, too, and no bits.
	if m[MachineWords] == target[MachineWords] {
		delete(fields, MachineFlags)
	} else if m[MachineFlags] != target[MachineFlags] {
		delete(fields, MachineWords)
	}
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if m[field] != target[field] {
			source, other := onlyIn(m[field], target[field])
			if source == other { // only their order differs
				continue
			}
			all = append(all, Difference{Field: field, Source: source, Target: other})
		}
	}
	return all
}

// onlyIn gives what of two lists the other one has not.
func onlyIn(a, b string) (ofA, ofB string) {
	listA, listB := strings.Fields(a), strings.Fields(b)
	less := func(list, other []string) string {
		left := slices.DeleteFunc(slices.Clone(list), func(one string) bool { return slices.Contains(other, one) })
		if len(left) == 0 {
			return Nothing
		}
		return strings.Join(left, " ")
	}
	return less(listA, listB), less(listB, listA)
}

// Remedy says what can be done about the difference.
func (d Difference) Remedy() string {
	disk := strings.HasPrefix(d.Field, MachineDisk)
	switch {
	case disk && strings.HasSuffix(d.Field, MachineSize):
		return "give the disk the same size on both hosts, or stop and start the VM to use another one"
	case d.Field == MachineType, strings.HasPrefix(d.Field, "CPU"):
		return "migrate to a host with the same QEMU and processor, or stop and start the VM on another one"
	}
	return "stop and start the VM, if its record was changed since it began"
}
