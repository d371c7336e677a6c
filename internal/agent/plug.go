package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/wire"
)

const (
	// unplugWithin is how long a guest has to let go of a card.
	unplugWithin = 30 * time.Second
	// dropAgain is the pause before what is left of a card is removed again.
	dropAgain = 2 * time.Second
)

// plugRecord is the newest change of the machine's hardware: under way, or done with
// an answer.
type plugRecord struct {
	Sequence uint64     `json:"sequence"`
	Slot     fleet.Slot `json:"slot"`
	Remove   bool       `json:"remove,omitempty"`
	Done     bool       `json:"done,omitempty"`
	Code     fleet.Code `json:"code,omitempty"` // this and what follows: why it has failed
	Cause    string     `json:"cause,omitempty"`
	Hint     string     `json:"hint,omitempty"`
}

func (p plugRecord) report() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_HardwareChanged{HardwareChanged: &godwitv1.HardwareChanged{
		Slot: uint32(p.Slot), Removed: p.Remove, Code: string(p.Code), Cause: p.Cause, Hint: p.Hint,
	}}}
}

// plugged is one disk or port of the VM, as far as its card is concerned.
type plugged struct {
	slot fleet.Slot
	disk *fleet.Disk // this or port
	port *fleet.Port
}

func pluggedOf(want *godwitv1.ChangeHardware) (plugged, error) {
	if want.GetDisk() != nil {
		disk := wire.DecodeDisk(want.GetDisk())
		return plugged{slot: disk.Slot, disk: &disk}, nil
	}
	port, err := wire.DecodePort(want.GetPort())
	return plugged{slot: port.Slot, port: &port}, err
}

func (p plugged) String() string {
	if p.disk != nil {
		return "disk " + p.disk.Name
	}
	return "port " + p.port.Name
}

// pluggedIn gives what is in a slot, by what is written down of the instance.
func (m *machine) pluggedIn(slot fleet.Slot) (one plugged, found bool) {
	config := m.instance.Config()
	for at, nic := range config.NICs {
		if fleet.PortSlot(nic.Slot, at) == slot {
			return plugged{slot: slot, port: &fleet.Port{Name: nic.Name}}, true
		}
	}
	for at, disk := range config.Disks {
		if fleet.DiskSlot(disk.Slot, at) == slot {
			return plugged{slot: slot, disk: diskOf(disk)}, true
		}
	}
	return plugged{}, false
}

// changeHardware plugs a card in or out. What is under way is written down: another
// agent, which is told again, goes on with it. One that is older than what was done
// since is not carried out.
func (m *machine) changeHardware(ctx context.Context, command *godwitv1.Command, want *godwitv1.ChangeHardware) *godwitv1.Report {
	one, err := pluggedOf(want)
	now := plugRecord{Sequence: command.GetSequence(), Remove: want.GetRemove(), Slot: one.slot}
	last := m.record.Plug
	switch {
	case last != nil && now.Sequence < last.Sequence:
		return nil
	case last != nil && now.Sequence == last.Sequence && last.Done:
		return last.report()
	case m.record.Role != alone || m.instance == nil || m.instance.Ended():
		m.untold(command) // told again, if it is still wanted then
		return nil
	}
	if err == nil {
		err = m.notePlug(now)
	}
	if err == nil {
		err = m.plug(ctx, one, want)
	}
	now.Done = true
	if err != nil {
		m.agent.log.Warn("the hardware is not changed", "vm", m.key.vm, "epoch", m.key.epoch, "slot", now.Slot, "error", err)
		now.Code, now.Cause, now.Hint = fleet.CodeOf(err), err.Error(), fleet.HintOf(err)
	}
	unsure := errors.Is(err, errUnsure) || err != nil && (ctx.Err() != nil || endedWith(m.instance, err))
	if unsure || m.notePlug(now) != nil {
		m.untold(command)
		return nil
	}
	return now.report()
}

// errUnsure: a change was begun, and is neither done nor undone. It is told again.
var errUnsure = errors.New("it is tried again")

// notePlug writes a change down. What was said of the slot before is over then.
func (m *machine) notePlug(now plugRecord) error {
	next := m.record
	next.Plug = &now
	next.Gone = slices.DeleteFunc(slices.Clone(next.Gone), func(slot fleet.Slot) bool { return slot == now.Slot })
	return m.note(next)
}

// plug carries a change out. One that fails leaves nothing behind.
func (m *machine) plug(ctx context.Context, one plugged, want *godwitv1.ChangeHardware) error {
	if other, found := m.pluggedIn(one.slot); found && other.String() != one.String() {
		return &fleet.Error{Code: fleet.Conflict, Op: "change", Subject: one.String(), Cause: fmt.Sprintf("PCI slot %d has %v", one.slot, other)}
	}
	if want.GetRemove() {
		return m.unplug(ctx, one)
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	there, err := m.hasPlugged(ctx, one)
	if err != nil || there {
		return err
	}
	if one.disk != nil {
		err = m.plugDisk(ctx, *one.disk, want)
	} else {
		err = m.plugPort(ctx, *one.port, want.GetNetwork())
	}
	if err == nil {
		return nil
	}
	undoing, cancel := context.WithTimeout(m.life, runWithin)
	defer cancel()
	there, asked := m.hasPlugged(undoing, one)
	if there { // it was done, and only the answer was lost
		return nil
	}
	if asked == nil {
		asked = m.drop(undoing, one)
	}
	if asked != nil {
		return errors.Join(errUnsure, err, asked)
	}
	return err
}

// hasPlugged tells whether the instance has the card.
func (m *machine) hasPlugged(ctx context.Context, one plugged) (bool, error) {
	gone, err := m.instance.Gone(ctx)
	_, known := m.pluggedIn(one.slot)
	return known && !slices.Contains(gone, one.slot), err
}

// plugDisk plugs a disk in. The lease of a volume is active before QEMU opens it.
func (m *machine) plugDisk(ctx context.Context, disk fleet.Disk, want *godwitv1.ChangeHardware) error {
	if err := m.filesAnswer(ctx, fleet.VMSpec{Disks: []fleet.Disk{disk}}); err != nil {
		return err
	}
	if disk.Kind == fleet.DiskVolume {
		if err := m.addVolume(disk, want.GetVolumeServer(), want.GetVolumeKey()); err != nil {
			return err
		}
		if err := m.activate(ctx, m.key.epoch); err != nil {
			return err
		}
		go m.outliveErrors(m.life, m.instance)
	}
	config, creds, err := m.qemuDisk(disk)
	if err == nil {
		err = m.instance.PlugDisk(ctx, config, creds)
	}
	return err
}

// plugPort plugs a port in, with a tap that no card has had: QEMU would not bear a
// queue that another one has switched off.
func (m *machine) plugPort(ctx context.Context, port fleet.Port, known *godwitv1.PortNetwork) error {
	if err := m.drop(ctx, plugged{slot: port.Slot, port: &port}); err != nil {
		return err
	}
	one := m.portRecord(port, known)
	next := m.record
	next.Ports = append(slices.Clone(next.Ports), one)
	if err := m.note(next); err != nil {
		return err
	}
	if err := m.makePort(one, known, network.Gate{Mode: network.Pass, Epoch: m.key.epoch}); err != nil {
		return err
	}
	ports := m.allPorts()
	nic, err := qemuNIC(ports[len(ports)-1], one.MTU, port.Slot)
	if err != nil {
		return err
	}
	defer closeVhost([]qemu.NIC{nic})
	return m.instance.PlugNIC(ctx, nic)
}

// unplug has the guest let go of a card, and removes what belonged to it. Nobody
// waits for the guest when it is to be ended at once.
func (m *machine) unplug(ctx context.Context, one plugged) error {
	waiting, cancel := context.WithTimeout(ctx, unplugWithin)
	defer cancel()
	go func() {
		select {
		case <-m.hurry:
			cancel()
		case <-waiting.Done():
		}
	}()
	err := m.instance.Unplug(waiting, one.slot)
	if fleet.CodeOf(err) == fleet.Deadline {
		return &fleet.Error{
			Code: fleet.Deadline, Op: "remove", Subject: one.String(),
			Cause: fmt.Sprintf("the guest did not let go of it within %v", unplugWithin), Hint: fleet.HintOf(err),
		}
	}
	if err == nil {
		err = m.drop(ctx, one)
	}
	if err != nil { // the guest may have let go of it
		return errors.Join(errUnsure, err)
	}
	return nil
}

// drop removes what belongs to a card that the instance does not have. It may be
// called again.
func (m *machine) drop(ctx context.Context, one plugged) error {
	if one.disk != nil && one.disk.Kind == fleet.DiskVolume {
		if err := m.dropVolume(*one.disk); err != nil { // first: it is no longer this host's to activate
			return err
		}
	}
	if err := m.instance.DropCard(ctx, one.slot); err != nil {
		return err
	}
	if one.port == nil {
		return nil
	}
	return m.removePort(one.port.Name)
}

// followCards removes what belonged to cards of which the guest has let go without
// anybody's waiting for that any more.
func (m *machine) followCards(ctx context.Context, instance *qemu.Instance) {
	events := instance.Subscribe()
	defer events.Close()
	timer := time.NewTimer(0) // an earlier agent may have missed it
	defer timer.Stop()
	for {
		select {
		case event, open := <-events.Events():
			if !open {
				return
			}
			if event.Kind == qemu.CardGone {
				timer.Reset(0)
			}
		case <-m.alone:
			timer.Reset(0)
		case <-timer.C:
			if !m.dropLate(ctx, instance) {
				timer.Reset(dropAgain)
			}
		case <-ctx.Done():
			return
		}
	}
}

// aloneAgain has followCards look: while a migration had the machine, it did nothing.
func (m *machine) aloneAgain() {
	select {
	case m.alone <- struct{}{}:
	default:
	}
}

// dropLate removes it in the worker's turn, and tells whether that is not to be tried
// again.
func (m *machine) dropLate(ctx context.Context, instance *qemu.Instance) (done bool) {
	err := m.inTurn(ctx, func() error { return m.dropGone(ctx, instance) })
	if err == nil || ctx.Err() != nil || instance.Ended() {
		return true
	}
	m.agent.log.Warn("what belonged to a card is not removed", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
	return false
}

// dropGone, of the worker, does that, and tells the servers, who are told again in
// each session. They give a slot to another card then, so nothing of the card is left.
func (m *machine) dropGone(ctx context.Context, instance *qemu.Instance) error {
	if m.record.Role != alone || m.instance != instance {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, runWithin)
	defer cancel()
	gone, err := instance.Gone(ctx)
	for _, slot := range gone {
		one, found := m.pluggedIn(slot)
		if last := m.record.Plug; !found || last != nil && last.Slot == slot && !last.Done {
			continue // it was never plugged in to the end: who is told again does it
		}
		if next := m.record; !slices.Contains(next.Gone, slot) {
			next.Gone = append(slices.Clone(next.Gone), slot)
			err = errors.Join(err, m.note(next))
		}
		if dropped := m.drop(ctx, one); dropped != nil {
			err = errors.Join(err, dropped)
			continue
		}
		m.agent.say(m.goneReport(slot))
	}
	return err
}

// goneCards, with mu held, gives the slots of cards of which servers are to be told
// that they are gone.
func (m *machine) goneCards() []fleet.Slot {
	if m.instance == nil {
		return m.record.Gone
	}
	return slices.DeleteFunc(slices.Clone(m.record.Gone), func(slot fleet.Slot) bool {
		_, left := m.pluggedIn(slot)
		return left
	})
}

func (m *machine) goneReport(slot fleet.Slot) *godwitv1.Report {
	report := plugRecord{Slot: slot, Remove: true}.report()
	report.Subject, report.Epoch = string(m.key.vm), uint64(m.key.epoch)
	return report
}
