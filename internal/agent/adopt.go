package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
)

// adoptAll takes over what an earlier agent left on this host.
func (a *Agent) adoptAll(ctx context.Context) error {
	dir := filepath.Join(a.config.Dir, "instances")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for instances: %w", err)
	}
	for _, entry := range entries {
		if err := a.adoptDir(ctx, filepath.Join(dir, entry.Name())); err != nil {
			// One that can't be read must not keep the others from it.
			a.log.Error("an instance was not adopted", "dir", entry.Name(), "error", err)
		}
	}
	return nil
}

// adoptDir registers the machine of a folder, if there is one, and takes it over.
func (a *Agent) adoptDir(ctx context.Context, dir string) error {
	m, err := a.machineOf(dir)
	if m == nil {
		return err
	}
	if !a.add(m) {
		return fmt.Errorf("another folder is of vm %s at epoch %d, too", m.key.vm, m.key.epoch)
	}
	return m.adopt(ctx)
}

// machineOf gives the machine of a folder that nobody has looked at yet; nil when
// there is none.
func (a *Agent) machineOf(dir string) (*machine, error) {
	r, err := readRecord(dir)
	if err == nil {
		return a.recorded(r, dir), nil
	}
	if errors.Is(err, fs.ErrNotExist) && qemu.Ended(dir, a.config.BootID) {
		return nil, os.RemoveAll(dir) // a start that had not come to its first port
	}
	key, named := keyOf(dir)
	if !named {
		return nil, err
	}
	m := a.recorded(record{VM: key.vm, Epoch: key.epoch}, dir)
	m.unread = true
	return m, nil
}

// recorded makes a machine that is to be adopted.
func (a *Agent) recorded(r record, dir string) *machine {
	m := a.newMachine(machineKey{r.VM, r.Epoch}, r.UID)
	m.record, m.dir = r, dir
	m.unadopted = errAdopting // until then nobody may think that it is gone
	m.mayWrite = r.Volumes != nil
	return m
}

var errAdopting = errors.New("it is being taken over")

// keyOf reads the name that instanceDir gives.
func keyOf(dir string) (machineKey, bool) {
	vm, text, _ := strings.Cut(filepath.Base(dir), ".")
	epoch, err := strconv.ParseUint(text, 10, 64)
	return machineKey{fleet.VMName(vm), fleet.Epoch(epoch)}, err == nil && fleet.CheckName(vm) == nil
}

// adopt takes over what is there of a machine. If it can't, the machine stays
// registered as one that may well run: before an adoption has succeeded it is not
// said to be gone, and no command for it is carried out but one that ends it.
func (m *machine) adopt(ctx context.Context) error {
	var instance *qemu.Instance
	var ports []*port
	err := m.readAgain()
	if err == nil {
		err = m.moveFolder()
	}
	if err == nil {
		instance, ports, err = m.adoptInstance(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unadopted = err
	if err != nil {
		return err
	}
	m.instance, m.ports = instance, ports
	m.agent.log.Info("adopted", "vm", m.key.vm, "epoch", m.key.epoch, "role", m.record.Role, "runs", instance != nil)
	return nil
}

// readAgain reads a record that could not be read before. Without it an instance
// can be taken over only when it has ended: then nothing of it matters any more.
func (m *machine) readAgain() error {
	if !m.unread {
		return nil
	}
	r, err := readRecord(m.dir)
	if err == nil && (machineKey{r.VM, r.Epoch}) != m.key {
		err = fmt.Errorf("its record is of vm %s at epoch %d", r.VM, r.Epoch)
	}
	if err != nil {
		if !qemu.Ended(m.dir, m.agent.config.BootID) {
			return fmt.Errorf("read its record: %w", err)
		}
		m.agent.log.Error("an instance has ended whose record can't be read; its taps, if there are any, stay",
			"vm", m.key.vm, "epoch", m.key.epoch, "error", err)
		r = m.record
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record, m.uid, m.unread = r, r.UID, false
	return nil
}

// moveFolder gives the folder of an instance that has got another epoch its name.
func (m *machine) moveFolder() error {
	to := m.agent.instanceDir(m.key)
	if m.dir == to {
		return nil
	}
	err := durable.Rename(m.dir, to)
	if errors.Is(err, fs.ErrNotExist) { // it was renamed, but nobody knew for how long
		err = durable.SyncFolder(filepath.Dir(to))
	}
	if err == nil {
		m.dir = to
	}
	return err
}

// adoptInstance takes over the process, if there is one, and its ports.
func (m *machine) adoptInstance(ctx context.Context) (instance *qemu.Instance, ports []*port, err error) {
	ctx, cancel := context.WithTimeout(ctx, adoptWithin)
	defer cancel()
	instance, err = qemu.Adopt(ctx, m.dir, m.agent.config.BootID)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return nil, nil, err
	}
	ports, err = m.adoptPorts(ctx, instance)
	switch role := m.record.Role; {
	case err != nil:
	case instance != nil && role == alone:
		err = m.runAlone(ctx, instance)
	case instance == nil && (role == source || role == refused):
		m.keepTaps(ports)
	}
	if err == nil {
		return instance, ports, nil
	}
	for _, port := range ports {
		err = errors.Join(err, port.tap.Close())
	}
	if instance != nil {
		err = errors.Join(err, instance.Close())
	}
	return nil, nil, err
}

// runAlone lets an instance run whose start may have been cut off before its guest
// did. One that can't run on, such as after an error of the virtual processor, is
// the agent's all the same: it says so of it.
func (m *machine) runAlone(ctx context.Context, instance *qemu.Instance) error {
	if err := m.activateUnrun(ctx, instance); err != nil {
		return err
	}
	_, err := instance.Resume(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.halted = ""
	if fleet.CodeOf(err) != fleet.Conflict {
		return err
	}
	m.halted = err.Error()
	m.agent.log.Error("a guest stands still", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
	return nil
}

func (m *machine) adoptPorts(ctx context.Context, instance *qemu.Instance) (ports []*port, err error) {
	for _, one := range m.record.Ports {
		port, err := m.adoptPort(ctx, one, instance)
		if err != nil {
			return ports, err
		}
		if port != nil {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// unplugged: a port was being plugged in or out when an earlier agent ended, and the
// instance has no card of it.
func unplugged(ctx context.Context, instance *qemu.Instance, name string) bool {
	nics := instance.Config().NICs
	at := slices.IndexFunc(nics, func(n qemu.NIC) bool { return n.Name == name })
	if at < 0 {
		return true
	}
	gone, err := instance.Gone(ctx)
	return err == nil && slices.Contains(gone, fleet.PortSlot(nics[at].Slot, at))
}

// adoptWithin bounds the adoption of one instance.
const adoptWithin = 5 * time.Second

// adoptPort takes copies of the tap's queues from QEMU. A tap whose QEMU has
// ended, or has no card of it, may have been kept open; else it is opened anew.
func (m *machine) adoptPort(ctx context.Context, one portRecord, instance *qemu.Instance) (*port, error) {
	config, err := one.tapConfig(network.Gate{Mode: network.Closed, Epoch: m.key.epoch})
	if err != nil {
		return nil, err
	}
	var fds []int
	if instance != nil {
		fds, err = instance.TapFDs(one.Tap)
		switch {
		case fleet.CodeOf(err) == fleet.NotFound && unplugged(ctx, instance, one.Name):
			instance = nil
		case err != nil:
			return nil, fmt.Errorf("take over tap %s: %w", one.Tap, err)
		}
	}
	if instance == nil {
		fds = m.agent.keptTap(one.Tap)
	}
	tap, err := m.agent.config.Network.AdoptTap(config, fds)
	if fleet.CodeOf(err) == fleet.NotFound && instance == nil {
		return nil, nil // the host was restarted, or the port never made
	}
	if err != nil {
		return nil, err
	}
	return &port{one, tap}, nil
}
