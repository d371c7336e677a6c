package fleet

import "slices"

// Change adds one disk or port to a running VM, or removes one: it is ordered, and
// the VM's host carries it out. Until that is done the VM's spec is as before.
type Change struct {
	Sequence uint64      `json:"sequence"` // grows with every change of the VM
	Remove   bool        `json:"remove,omitempty"`
	Disk     *Disk       `json:"disk,omitempty"` // this or Port
	Port     *Port       `json:"port,omitempty"`
	State    ChangeState `json:"state"`
	Untold   bool        `json:"untold,omitempty"` // pending, and surely not begun: the host was never sent it
	Cause    string      `json:"cause,omitempty"`  // why it has failed
}

// ChangeState is what has become of a change. The values are stored, so they are
// never renamed.
type ChangeState string

// The states.
const (
	ChangePending ChangeState = "pending"
	ChangeDone    ChangeState = "done"
	ChangeFailed  ChangeState = "failed"
)

// Changing tells whether a change of the VM's hardware is under way. Until it has
// ended there is no other, and no migration.
func (vm VM) Changing() bool { return vm.Change != nil && vm.Change.State == ChangePending }

// Slot gives the slot of the card.
func (c Change) Slot() Slot {
	if c.Disk != nil {
		return c.Disk.Slot
	}
	return c.Port.Slot
}

// String says what is done to what.
func (c Change) String() string {
	text := "add "
	if c.Remove {
		text = "remove "
	}
	if c.Disk != nil {
		return text + "disk " + c.Disk.Name
	}
	return text + "port " + c.Port.Name
}

// Ended gives the change as it is when it has come to its end; "" is no cause.
func (c Change) Ended(cause string) *Change {
	c.State, c.Cause, c.Untold = ChangeDone, cause, false
	if cause != "" {
		c.State = ChangeFailed
	}
	return &c
}

// Removal gives the change that removes the card in a slot; false if the spec has
// none there.
func (s VMSpec) Removal(slot Slot) (Change, bool) {
	for i, disk := range s.Disks {
		if DiskSlot(disk.Slot, i) == slot {
			disk.Slot = slot
			return Change{Remove: true, Disk: &disk}, true
		}
	}
	for i, port := range s.Ports {
		if PortSlot(port.Slot, i) == slot {
			port.Slot = slot
			return Change{Remove: true, Port: &port}, true
		}
	}
	return Change{}, false
}

// With gives the spec after a change. The cards that stay keep their slots, and one
// that goes leaves its root port.
func (s VMSpec) With(c Change) VMSpec {
	s = s.Slotted()
	switch {
	case c.Remove:
		if len(s.RootPorts) == 0 && OnPCIe(s.Machine) {
			s.RootPorts = s.slots()
			slices.Sort(s.RootPorts)
		}
		s.Disks = slices.DeleteFunc(s.Disks, func(d Disk) bool { return c.Disk != nil && d.Name == c.Disk.Name })
		s.Ports = slices.DeleteFunc(s.Ports, func(p Port) bool { return c.Port != nil && p.Name == c.Port.Name })
	case c.Disk != nil:
		s.Disks = append(s.Disks, *c.Disk)
	default:
		s.Ports = append(s.Ports, *c.Port)
	}
	return s
}
