package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"

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
	disks []*guestDisk
	udp   *probe.UDP
	wire  *wire
}

// boot starts it on the source's host, with records on disks of so many bytes each.
func (w *watched) boot(ctx context.Context, name string, size int64, perSecond int) (err error) {
	if w.disks, err = makeDisks(ctx, w.fleet, name, size); err != nil {
		return err
	}
	config := fleetlab.GuestConfig{Name: name, Host: sourceHost, Records: perSecond}
	for _, disk := range w.disks {
		config.Disks = append(config.Disks, disk.spec)
	}
	w.guest, err = w.fleet.Boot(ctx, config)
	return err
}

// openEyes begins to note everything, and to send it packets.
func (w *watched) openEyes(ctx context.Context, packets probe.UDPConfig) (err error) {
	for _, disk := range w.disks {
		if disk.path == "" {
			continue
		}
		if disk.saw, err = follow(disk.spec.GetName(), disk.path); err != nil {
			return err
		}
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

// asked has the guest say what came to it of the packets, and what its disks have
// acknowledged.
func (w *watched) asked(ctx context.Context) (flow witness.Flow, err error) {
	report, err := w.guest.Probe().Status(ctx)
	for _, one := range report.Flows {
		if one.Flow == w.udp.Flow() {
			flow = one
		}
	}
	for i, one := range report.Disks {
		w.disks[i].acknowledged = one.Written
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
