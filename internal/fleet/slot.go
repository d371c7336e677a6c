package fleet

import (
	"slices"
	"strings"
)

// Slot is the PCI slot of a disk's or port's card. It stays the same for as long as
// the VM has the card: a guest, and the state of an instance that moves, know the
// card by it. Zero, in records from before there were slots, stands for the one that
// follows from the card's place in its list.
type Slot uint32

// The slots. Those below are the machine's own, and so is 0x1f on q35.
const (
	FirstPortSlot Slot = 0x10
	FirstDiskSlot Slot = 0x18
	MaxPorts           = int(FirstDiskSlot - FirstPortSlot)
	MaxDisks           = 7
)

// sparePorts is how many free slots of each kind have a root port when a VM is
// started: so many cards can be plugged in before it is stopped and started.
const sparePorts = 2

// PortSlot gives the slot of a port by its place in the list.
func PortSlot(slot Slot, place int) Slot { return slotOr(slot, FirstPortSlot, place) }

// DiskSlot gives the slot of a disk by its place in the list.
func DiskSlot(slot Slot, place int) Slot { return slotOr(slot, FirstDiskSlot, place) }

func slotOr(slot, first Slot, place int) Slot {
	if slot != 0 {
		return slot
	}
	return first + Slot(place)
}

// OnPCIe tells whether cards are plugged into root ports of their own, and not into
// the machine's one bus.
func OnPCIe(machine string) bool {
	return machine != "pc" && !strings.HasPrefix(machine, "pc-i440fx-")
}

// Slotted gives the spec with all slots named, so that a card keeps its own when
// another one before it goes.
func (s VMSpec) Slotted() VMSpec {
	s.Disks, s.Ports = slices.Clone(s.Disks), slices.Clone(s.Ports)
	for i := range s.Disks {
		s.Disks[i].Slot = DiskSlot(s.Disks[i].Slot, i)
	}
	for i := range s.Ports {
		s.Ports[i].Slot = PortSlot(s.Ports[i].Slot, i)
	}
	return s
}

// slots gives those that have a card.
func (s VMSpec) slots() (taken []Slot) {
	for i, disk := range s.Disks {
		taken = append(taken, DiskSlot(disk.Slot, i))
	}
	for i, port := range s.Ports {
		taken = append(taken, PortSlot(port.Slot, i))
	}
	return taken
}

// FreeSlots gives the slots for disks, or ports, that have no card, lowest first.
func (s VMSpec) FreeSlots(disks bool) (free []Slot) {
	first, most, taken := FirstPortSlot, MaxPorts, s.slots()
	if disks {
		first, most = FirstDiskSlot, MaxDisks
	}
	for slot := first; slot < first+Slot(most); slot++ {
		if !slices.Contains(taken, slot) {
			free = append(free, slot)
		}
	}
	return free
}

// PluggableSlots gives those of them into which a card can be plugged while the VM
// runs.
func (s VMSpec) PluggableSlots(disks bool) []Slot {
	free := s.FreeSlots(disks)
	if !OnPCIe(s.Machine) {
		return free
	}
	return slices.DeleteFunc(free, func(slot Slot) bool { return !slices.Contains(s.RootPorts, slot) })
}

// NewRootPorts gives the root ports of an instance that is started: for the cards
// that it has, and some more.
func (s VMSpec) NewRootPorts() []Slot {
	if !OnPCIe(s.Machine) {
		return nil
	}
	ports := s.slots()
	for _, disks := range []bool{true, false} {
		free := s.FreeSlots(disks)
		ports = append(ports, free[:min(sparePorts, len(free))]...)
	}
	slices.Sort(ports)
	return ports
}
