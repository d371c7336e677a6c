package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
)

const recordFile = "machine.json"

// writeRecord replaces the record. Once it has returned, what that promises
// holds even if the host loses its power.
func writeRecord(dir string, r record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the machine's record: %w", err)
	}
	if err := durable.WriteFile(filepath.Join(dir, recordFile), data, 0o600); err != nil {
		return &fleet.Error{
			Code: fleet.Failed, Op: "write the machine's record", Subject: dir, Err: err,
			Hint: "see whether the disk of the agent's folder is full",
		}
	}
	return nil
}

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
		if _, err := a.adoptDir(ctx, filepath.Join(dir, entry.Name())); err != nil {
			// One that can't be read must not keep the others from it.
			a.log.Error("an instance was not adopted", "dir", entry.Name(), "error", err)
		}
	}
	return nil
}

// adoptDir gives the machine also when its instance could not be taken over; nil
// when there is none.
func (a *Agent) adoptDir(ctx context.Context, dir string) (*machine, error) {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, os.RemoveAll(dir) // a start that had not come to its first port
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	m := a.newMachine(machineKey{r.VM, r.Epoch}, r.UID)
	m.record = r
	if m.dir != dir { // it was being renumbered
		if err := durable.Rename(dir, m.dir); err != nil {
			return nil, err
		}
	}
	m.unadopted = errAdopting // until then nobody may think that it is gone
	a.add(m)
	return m, m.adopt(ctx)
}

var errAdopting = errors.New("it is being taken over")

// adopt takes over what is there of a machine. If it can't, the machine stays
// registered as one that may well run: no command for it is carried out, or
// answered as if it were gone, before an adoption has succeeded.
func (m *machine) adopt(ctx context.Context) error {
	instance, ports, err := m.takeOver(ctx)
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

func (m *machine) takeOver(ctx context.Context) (instance *qemu.Instance, ports []*port, err error) {
	ctx, cancel := context.WithTimeout(ctx, adoptWithin)
	defer cancel()
	instance, err = qemu.Adopt(ctx, m.dir, m.agent.config.BootID)
	if err != nil && fleet.CodeOf(err) != fleet.NotFound {
		return nil, nil, err
	}
	if ports, err = m.adoptPorts(instance); err == nil && instance != nil && m.record.Role == alone {
		_, err = instance.Resume(ctx) // a start may have been cut off before the guest ran
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

func (m *machine) adoptPorts(instance *qemu.Instance) (ports []*port, err error) {
	for _, one := range m.record.Ports {
		port, err := m.adoptPort(one, instance)
		if err != nil {
			return ports, err
		}
		if port != nil {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// adoptWithin bounds the adoption of one instance.
const adoptWithin = 5 * time.Second

// adoptPort takes copies of the tap's queues from QEMU; a tap whose QEMU has
// ended is opened anew.
func (m *machine) adoptPort(one portRecord, instance *qemu.Instance) (*port, error) {
	config, err := one.tapConfig(network.Gate{Mode: network.Closed, Epoch: m.key.epoch})
	if err != nil {
		return nil, err
	}
	var fds []int
	if instance != nil {
		if fds, err = instance.TapFDs(one.Tap); err != nil {
			return nil, fmt.Errorf("take over tap %s: %w", one.Tap, err)
		}
	}
	tap, err := m.agent.config.Network.AdoptTap(config, fds)
	if fleet.CodeOf(err) == fleet.NotFound && instance == nil {
		return nil, nil // the host was restarted, or the port never made
	}
	if err != nil {
		return nil, err
	}
	return &port{name: one.Name, network: one.Network, mac: one.MAC, tunnel: one.Tunnel, tap: tap}, nil
}
