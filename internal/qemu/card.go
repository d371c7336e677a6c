package qemu

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// card is a device as QEMU is told of it: on its command line, or by device_add.
type card struct {
	driver     string
	id         string
	properties map[string]any // strings, numbers and truth values
}

// String spells it for the command line.
func (c card) String() string {
	text := c.driver + ",id=" + c.id
	for _, name := range slices.Sorted(maps.Keys(c.properties)) {
		value := fmt.Sprint(c.properties[name])
		if set, ok := c.properties[name].(bool); ok {
			value = map[bool]string{true: "on", false: "off"}[set]
		}
		text += "," + name + "=" + strings.ReplaceAll(value, ",", ",,")
	}
	return text
}

// arguments spells it for device_add.
func (c card) arguments() map[string]any {
	arguments := map[string]any{"driver": c.driver, "id": c.id}
	for name, value := range c.properties {
		arguments[name] = value
	}
	return arguments
}

// diskID and nicID give the names of what belongs to the card in a slot: they stay
// the same, whatever other cards there are.
func diskID(slot fleet.Slot) string { return "disk" + strconv.Itoa(int(slot-fleet.FirstDiskSlot)) }
func nicID(slot fleet.Slot) string  { return "nic" + strconv.Itoa(int(slot-fleet.FirstPortSlot)) }

func idOf(slot fleet.Slot) string {
	if slot >= fleet.FirstDiskSlot {
		return diskID(slot)
	}
	return nicID(slot)
}

func cardID(id string) string { return id + "-card" }

// place puts a card into its slot.
func (c card) place(machine string, slot fleet.Slot) card {
	c.properties["bus"], c.properties["addr"] = "pci.0", fmt.Sprintf("0x%x", int(slot))
	if fleet.OnPCIe(machine) {
		c.properties["bus"], c.properties["addr"] = idOf(slot)+"-port", "0x0"
	}
	return c
}

func nicCard(machine string, slot fleet.Slot, nic NIC) card {
	id := nicID(slot)
	c := card{"virtio-net-pci", cardID(id), map[string]any{
		"netdev": id, "mac": nic.MAC, "romfile": "", "rx_queue_size": 1024,
	}}
	if nic.MTU > 0 {
		c.properties["host_mtu"] = nic.MTU
	}
	if queues := len(nic.FDs); queues > 1 {
		// An interrupt for each queue and direction, one for configuration,
		// one for the control queue.
		c.properties["mq"], c.properties["vectors"] = true, 2*queues+2
	}
	return c.place(machine, slot)
}

// maxSerial is the room that virtio-blk has for a serial number.
const maxSerial = 20

func diskCard(machine string, slot fleet.Slot, disk Disk) card {
	id := diskID(slot)
	return card{"virtio-blk-pci", cardID(id), map[string]any{
		"drive": id, "serial": disk.Name[:min(maxSerial, len(disk.Name))], "werror": "stop", "rerror": "stop",
	}}.place(machine, slot)
}

// rootPorts gives the slots that need a root port, in their order.
func (c Config) rootPorts() []fleet.Slot {
	if !fleet.OnPCIe(c.Machine) {
		return nil
	}
	slots := slices.Concat(c.slots(), c.RootPorts)
	slices.Sort(slots)
	return slices.Compact(slots)
}

func (l *line) addRootPort(slot fleet.Slot) {
	l.add("-device", fmt.Sprintf("pcie-root-port,id=%s-port,bus=pcie.0,addr=0x%x,chassis=%d,slot=%d", idOf(slot), int(slot), slot, slot))
}

// slots gives those that have a card.
func (c Config) slots() (taken []fleet.Slot) {
	for i, nic := range c.NICs {
		taken = append(taken, fleet.PortSlot(nic.Slot, i))
	}
	for i, disk := range c.Disks {
		taken = append(taken, fleet.DiskSlot(disk.Slot, i))
	}
	return taken
}

func (c Config) checkSlots() error {
	taken := map[fleet.Slot]bool{}
	for i, slot := range c.slots() {
		first, most := fleet.FirstPortSlot, fleet.MaxPorts
		if i >= len(c.NICs) {
			first, most = fleet.FirstDiskSlot, fleet.MaxDisks
		}
		if slot < first || slot >= first+fleet.Slot(most) || taken[slot] {
			return fmt.Errorf("PCI slot %d is taken, or not for such a card", slot)
		}
		taken[slot] = true
	}
	for _, slot := range c.RootPorts {
		if slot < fleet.FirstPortSlot || slot >= fleet.FirstDiskSlot+fleet.Slot(fleet.MaxDisks) {
			return fmt.Errorf("PCI slot %d is not for root ports", slot)
		}
	}
	return nil
}
