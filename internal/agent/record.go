package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/qemu"
)

const recordFile = "machine.json"

// writeRecord replaces the record so that a crash leaves the old or the new.
func writeRecord(dir string, r record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the machine's record: %w", err)
	}
	next := filepath.Join(dir, recordFile+".next")
	file, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the machine's record: %w", err)
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err == nil {
		err = os.Rename(next, filepath.Join(dir, recordFile))
	}
	if err != nil {
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
		if err := a.adopt(ctx, filepath.Join(dir, entry.Name())); err != nil {
			// One that can't be adopted must not keep the others from it.
			a.log.Error("an instance was not adopted", "dir", entry.Name(), "error", err)
		}
	}
	return nil
}

func (a *Agent) adopt(ctx context.Context, dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir) // a start that had not come to its first port
	}
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	m := a.newMachine(machineKey{r.VM, r.Epoch}, r.UID)
	m.record = r
	instance, err := qemu.Adopt(ctx, dir)
	switch {
	case err == nil:
		m.instance = instance
	case fleet.CodeOf(err) != fleet.NotFound:
		return err
	}
	for _, one := range r.Ports {
		if err := m.adoptPort(one); err != nil {
			return err
		}
	}
	a.add(m)
	a.log.Info("adopted", "vm", r.VM, "epoch", r.Epoch, "role", r.Role, "runs", m.instance != nil)
	return nil
}

// adoptPort takes copies of the tap's queues from QEMU; a tap whose QEMU has
// ended is opened anew.
func (m *machine) adoptPort(one portRecord) error {
	config, err := one.tapConfig(network.Gate{Mode: network.Closed, Epoch: m.key.epoch})
	if err != nil {
		return err
	}
	var fds []int
	if m.instance != nil {
		if fds, err = m.instance.TapFDs(one.Tap); err != nil {
			return err
		}
	}
	tap, err := m.agent.config.Network.AdoptTap(config, fds)
	if fleet.CodeOf(err) == fleet.NotFound && m.instance == nil {
		return nil // the host was restarted, or the port never made
	}
	if err != nil {
		return err
	}
	m.ports = append(m.ports, &port{name: one.Name, network: one.Network, mac: one.MAC, tunnel: one.Tunnel, tap: tap})
	return nil
}
