package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pledge"
)

const recordFile = "machine.json"

// record is what is written to the machine's folder, so that an agent that
// starts again knows what it has there.
type record struct {
	VM        fleet.VMName      `json:"vm"`
	UID       fleet.InstanceUID `json:"uid"`
	Epoch     fleet.Epoch       `json:"epoch"`
	Role      pledge.Role       `json:"role"`
	Migration string            `json:"migration,omitempty"`
	Peer      peerRecord        `json:"peer,omitzero"` // the migration's other host
	Ports     []portRecord      `json:"ports"`
	Volumes   *volumesRecord    `json:"volumes,omitempty"` // none without
	Disks     string            `json:"disks,omitempty"`   // the folder of its local disks
	Plug      *plugRecord       `json:"plug,omitempty"`    // none before the first change
	Gone      []fleet.Slot      `json:"gone,omitempty"`    // cards of which the guest has let go by itself
}

type portRecord struct {
	Name    string            `json:"name"`
	Network fleet.NetworkName `json:"network"`
	MAC     string            `json:"mac"`
	Tap     string            `json:"tap"`
	Queues  int               `json:"queues"`
	MTU     int               `json:"mtu"`
	Tunnel  fleet.TunnelID    `json:"tunnel,omitempty"` // zero outside a migration
	Bridge  string            `json:"bridge,omitempty"` // of a provider network, with what follows
	VLAN    uint16            `json:"vlan,omitempty"`
	IPs     []netip.Addr      `json:"ips,omitempty"` // that are announced after a move
}

// peerRecord is the other host of a migration.
type peerRecord struct {
	Host    fleet.HostName `json:"host"`
	Address string         `json:"address,omitempty"` // and port, of its agent; of a target only
	// SwitchMax: for so long the guest may stand still before the source asks
	// the target to give up; zero is for ever.
	SwitchMax time.Duration `json:"switchMax,omitempty"`
}

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

func readRecord(dir string) (r record, err error) {
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}
