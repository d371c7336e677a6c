package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
)

// watched is a VM whose packets, frames and records are all noted. What is not
// there yet is nil.
type watched struct {
	fleet *fleetlab.Fleet
	guest *fleetlab.Guest
	disk  string // path
	udp   *probe.UDP
	wire  *wire
	saw   *follower
}

// boot starts it on the source's host, with records on a disk of so many bytes.
func (w *watched) boot(ctx context.Context, name string, size int64, perSecond int) (err error) {
	w.disk = filepath.Join(w.fleet.Lab.Dir(), name+".raw")
	if err := os.WriteFile(w.disk, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(w.disk, size); err != nil {
		return err
	}
	w.guest, err = w.fleet.Boot(ctx, fleetlab.GuestConfig{
		Name: name, Host: sourceHost, Records: perSecond,
		Disks: []*godwitv1.Disk{{Name: "records", Kind: "file", Path: w.disk, Format: "raw"}},
	})
	return err
}

// openEyes begins to note everything, and to send it packets.
func (w *watched) openEyes(ctx context.Context, packets probe.UDPConfig) (err error) {
	if w.saw, err = follow(w.disk); err != nil {
		return err
	}
	vm, err := w.guest.Record(ctx)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(vm.GetSpec().GetPorts()[0].GetMac())
	if err != nil {
		return err
	}
	if w.wire, err = capture(w.fleet.Lab.Host(clientHost), mac); err != nil {
		return err
	}
	packets.Target = netip.AddrPortFrom(w.guest.Addrs[0], 0)
	w.udp, err = probe.StartUDP(w.fleet.Client, packets)
	return err
}

// asked has the guest say what came to it of the packets.
func (w *watched) asked(ctx context.Context) (flow witness.Flow, err error) {
	report, err := w.guest.Probe().Status(ctx)
	for _, one := range report.Flows {
		if one.Flow == w.udp.Flow() {
			flow = one
		}
	}
	return flow, err
}

// awaitPrograms waits until all servers answer and all hosts have a session.
func awaitPrograms(ctx context.Context, f *fleetlab.Fleet) error {
	ctx, cancel := context.WithTimeout(ctx, returnWithin)
	defer cancel()
	for i := range f.Servers() {
		if err := f.AwaitServerOf(ctx, i); err != nil {
			return err
		}
	}
	return f.AwaitHosts(ctx)
}

// saveJSON writes a file of results, and its folder.
func saveJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(path, append(text, '\n'), 0o644)
}
