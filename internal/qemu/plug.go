package qemu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
)

const (
	// freedEvery is how often it is looked whether a card that is gone has let go of its
	// node, and freedWithin how long that may take.
	freedEvery  = 2 * time.Millisecond
	freedWithin = 2 * time.Second
)

// PlugDisk plugs a disk into its slot while the guest runs, with the credentials of
// a folder if it is a volume. It may be called again for one of which a part is
// there. After an error nothing of it is, as long as QEMU answers.
func (i *Instance) PlugDisk(ctx context.Context, disk Disk, credsDir string) error {
	next := i.Config()
	if disk.Volume != nil {
		next.VolumeCreds = credsDir
	}
	next.Disks = slices.DeleteFunc(slices.Clone(next.Disks), func(d Disk) bool { return d.Slot == disk.Slot && d.Name == disk.Name })
	next.Disks = append(next.Disks, disk)
	return i.plug(ctx, "plug in disk "+disk.Name, disk.Slot, next, func() error { return i.addDisk(ctx, disk, credsDir) })
}

// PlugNIC is the same for a network card. Its descriptors stay the caller's. They must
// be of a tap that no card has had: QEMU aborts when it finds a queue switched off.
func (i *Instance) PlugNIC(ctx context.Context, nic NIC) error {
	next := i.Config()
	next.NICs = slices.DeleteFunc(slices.Clone(next.NICs), func(n NIC) bool { return n.Slot == nic.Slot && n.Name == nic.Name })
	next.NICs = append(next.NICs, nic)
	return i.plug(ctx, "plug in port "+nic.Name, nic.Slot, next, func() error { return i.addNIC(ctx, nic) })
}

// plug writes down what the instance is to have before it gets it, so that whoever
// adopts it knows of everything that it may have.
func (i *Instance) plug(ctx context.Context, op string, slot fleet.Slot, next Config, add func() error) error {
	if err := i.pluggable(slot, next); err != nil {
		return err
	}
	has, err := i.hasCard(ctx, slot)
	if err != nil || has {
		return i.wrap(op, err)
	}
	if err := i.setConfig(next); err != nil {
		return i.wrap(op, err)
	}
	if err := add(); err != nil {
		return i.wrap(op, errors.Join(err, i.undo(context.WithoutCancel(ctx), slot)))
	}
	return nil
}

// pluggable refuses what QEMU would.
func (i *Instance) pluggable(slot fleet.Slot, next Config) error {
	refuse := func(code fleet.Code, cause, hint string) error {
		return &fleet.Error{Code: code, Op: "plug in a card", Subject: "vm " + string(next.VM), Cause: cause, Hint: hint}
	}
	if err := next.check(); err != nil {
		return err
	}
	if now := i.Config(); fleet.OnPCIe(now.Machine) && !slices.Contains(now.rootPorts(), slot) {
		return refuse(fleet.Conflict, fmt.Sprintf("PCI slot %d has no root port", slot), "it has one after the VM was stopped and started")
	}
	return nil
}

// undo removes what a failed plug has left, unless the card is there after all.
func (i *Instance) undo(ctx context.Context, slot fleet.Slot) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	has, err := i.hasCard(ctx, slot)
	if err != nil || has {
		return err
	}
	return i.DropCard(ctx, slot)
}

func (i *Instance) addDisk(ctx context.Context, disk Disk, credsDir string) error {
	id := diskID(disk.Slot)
	// What an earlier try, or an earlier disk, has left may be of another image.
	if err := i.delNodes(ctx, id); err != nil {
		return err
	}
	if disk.Volume != nil {
		if err := i.readCreds(ctx, volumeCreds, credsDir); err != nil {
			return err
		}
	}
	nodes, err := diskNodes(id, disk)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		if err := i.monitor.Execute(ctx, "blockdev-add", node, nil); err != nil {
			return err
		}
	}
	return qmp.DeviceAdd(ctx, i.monitor, diskCard(i.config.Machine, disk.Slot, disk).arguments())
}

func (i *Instance) addNIC(ctx context.Context, nic NIC) error {
	id := nicID(nic.Slot)
	// What an earlier try has left is of other descriptors.
	if err := i.delNetdev(ctx, id); err != nil {
		return err
	}
	taps, err := i.passAll(ctx, id+"-tap", nic.FDs)
	if err != nil {
		return err
	}
	vhosts, err := i.passAll(ctx, id+"-vhost", nic.VhostFDs)
	if err != nil {
		return err
	}
	netdev := map[string]any{"type": "tap", "id": id, "vhost": len(vhosts) > 0}
	set := func(one string, names []string) {
		switch len(names) {
		case 0:
		case 1:
			netdev[one] = names[0]
		default:
			netdev[one+"s"] = strings.Join(names, ":")
		}
	}
	set("fd", taps)
	set("vhostfd", vhosts)
	if err := i.monitor.Execute(ctx, "netdev_add", netdev, nil); err != nil {
		for _, name := range append(taps, vhosts...) {
			_ = i.monitor.CloseFD(ctx, name) // those that it has not taken
		}
		return err
	}
	return qmp.DeviceAdd(ctx, i.monitor, nicCard(i.config.Machine, nic.Slot, nic).arguments())
}

// passAll gives QEMU duplicates of descriptors, and their names.
func (i *Instance) passAll(ctx context.Context, prefix string, fds []int) (names []string, err error) {
	for n, fd := range fds {
		name := prefix + strconv.Itoa(n)
		if err := i.monitor.PassFD(ctx, name, fd); err != nil {
			return names, err
		}
		names = append(names, name)
	}
	return names, nil
}

// Unplug asks the guest to let go of a card, waits until it has, and removes what
// belongs to the card. Deadline when ctx ends before: QEMU does not take the request
// back, so the guest may let go later, which CardGone tells.
func (i *Instance) Unplug(ctx context.Context, slot fleet.Slot) error {
	events := i.monitor.Subscribe(eventQueue, qmp.EventDeviceDeleted)
	defer events.Close()
	has, err := i.hasCard(ctx, slot)
	if err != nil {
		return i.wrap("unplug a card", err)
	}
	if has {
		err := qmp.DeviceDel(ctx, i.monitor, qmp.DeviceDelArgs{ID: cardID(idOf(slot))})
		if _, refused := errors.AsType[*qmp.Error](err); err != nil && !refused { // it was asked before, or is just gone
			return i.wrap("unplug a card", err)
		}
		if err := i.awaitGone(ctx, slot, events, err); err != nil {
			return err
		}
	}
	return i.DropCard(ctx, slot)
}

// awaitGone waits for the end of a card; refused is what QEMU has answered.
func (i *Instance) awaitGone(ctx context.Context, slot fleet.Slot, events *qmp.Subscription, refused error) error {
	for {
		has, err := i.hasCard(ctx, slot)
		switch {
		case ctx.Err() == nil && err != nil:
			return i.wrap("unplug a card", err)
		case err == nil && !has:
			return nil
		}
		select {
		case _, open := <-events.Events():
			if !open {
				return i.wrap("unplug a card", events.Err())
			}
		case <-ctx.Done():
			return &fleet.Error{
				Code: fleet.Deadline, Op: "unplug a card", Subject: "vm " + string(i.config.VM), Cause: "the guest did not let go of it", Err: refused,
				Hint: "see that the guest runs, has an operating system that knows hot-plugging, and does not use it any more",
			}
		}
	}
}

// DropCard removes what belongs to a card that is gone, and forgets it. It may be
// called again.
func (i *Instance) DropCard(ctx context.Context, slot fleet.Slot) error {
	id := idOf(slot)
	var err error
	if slot >= fleet.FirstDiskSlot {
		err = i.delFreed(ctx, id)
	} else {
		err = i.delNetdev(ctx, id)
	}
	if err == nil {
		err = i.setConfig(i.Config().without(slot))
	}
	return i.wrap("remove what belonged to a card", err)
}

// delNetdev removes what a network card has sent by; it does nothing if there is
// none.
func (i *Instance) delNetdev(ctx context.Context, id string) error {
	err := i.monitor.Execute(ctx, "netdev_del", map[string]string{"id": id}, nil)
	if qmp.IsClass(err, qmp.ClassDeviceNotFound) {
		return nil
	}
	return err
}

// delFreed removes the nodes of a disk whose card is gone. QEMU says that before the
// card lets go of its node, and says nothing when it has (an RCU grace period later).
func (i *Instance) delFreed(ctx context.Context, id string) error {
	look := time.NewTicker(freedEvery)
	defer look.Stop()
	tooLong := time.NewTimer(freedWithin)
	defer tooLong.Stop()
	for {
		err := i.delNodes(ctx, id)
		if !inUse(err) {
			return err
		}
		select {
		case <-look.C:
		case <-tooLong.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// inUse tells whether QEMU has refused to delete a node because something uses it,
// for which it has no class of its own.
func inUse(err error) bool {
	refused, ok := errors.AsType[*qmp.Error](err)
	return ok && strings.HasSuffix(refused.Desc, "is in use")
}

// delNodes removes a disk's nodes, the upper ones first.
func (i *Instance) delNodes(ctx context.Context, id string) error {
	nodes, err := i.nodesOf(ctx, id)
	if err != nil {
		return err
	}
	slices.Sort(nodes) // the format has the shortest name
	for _, node := range nodes {
		if err := i.delNode(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// nodesOf gives the nodes of a disk that there are.
func (i *Instance) nodesOf(ctx context.Context, id string) (names []string, err error) {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	err = i.monitor.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes)
	for _, node := range nodes {
		if node.Name == id || strings.HasPrefix(node.Name, id+"-file") {
			names = append(names, node.Name)
		}
	}
	return names, err
}

// Gone gives the slots of cards that the instance was to have and has not: the guest
// has let go of them, or they were never plugged in to the end.
func (i *Instance) Gone(ctx context.Context) (gone []fleet.Slot, err error) {
	cards, err := i.cards(ctx)
	if err != nil {
		return nil, i.wrap("ask for the cards", err)
	}
	for _, slot := range i.Config().slots() {
		if !slices.Contains(cards, cardID(idOf(slot))) {
			gone = append(gone, slot)
		}
	}
	return gone, nil
}

func (i *Instance) hasCard(ctx context.Context, slot fleet.Slot) (bool, error) {
	cards, err := i.cards(ctx)
	return slices.Contains(cards, cardID(idOf(slot))), err
}

func (i *Instance) cards(ctx context.Context) (ids []string, err error) {
	devices, err := qmp.QOMList(ctx, i.monitor, qmp.QOMListArgs{Path: "/machine/peripheral"})
	for _, device := range devices {
		ids = append(ids, device.Name)
	}
	return ids, err
}

// without gives the configuration without the card in a slot, which keeps its root
// port, and whose neighbours keep their slots.
func (c Config) without(slot fleet.Slot) Config {
	c.RootPorts = c.rootPorts()
	c.Disks, c.NICs = slices.Clone(c.Disks), slices.Clone(c.NICs)
	for at := range c.Disks {
		c.Disks[at].Slot = fleet.DiskSlot(c.Disks[at].Slot, at)
	}
	for at := range c.NICs {
		c.NICs[at].Slot = fleet.PortSlot(c.NICs[at].Slot, at)
	}
	c.Disks = slices.DeleteFunc(c.Disks, func(d Disk) bool { return d.Slot == slot })
	c.NICs = slices.DeleteFunc(c.NICs, func(n NIC) bool { return n.Slot == slot })
	return c
}
