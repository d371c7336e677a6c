package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

const (
	diskSize  = 4 * fleet.GiB
	diskUsed  = fleet.GiB
	diskTimes = 6 // migrations of each VM, unless --runs says otherwise
	// records that a guest writes in a second, with O_DIRECT and fsync.
	diskRecords = 50
)

// diskCases are the VMs that are compared.
var diskCases = [...]diskCase{
	{name: "no disk"}, {name: "disk", disk: true}, {name: "disk, written to", disk: true, records: diskRecords},
}

type diskCase struct {
	name    string
	disk    bool // of 4 GiB, with 1 GiB used
	records int
}

// diskMove is one migration.
type diskMove struct {
	Case       string  `json:"case"`
	State      string  `json:"state"`
	Cause      string  `json:"cause,omitempty"`
	Target     string  `json:"target"`
	BlackoutMs float64 `json:"blackout_ms"`
	TotalMs    float64 `json:"total_ms"`

	BlackoutPhasesMs map[string]float64 `json:"blackout_phases_ms"`
	// WireBytes is what left the source's host while it went on, but for the memory
	// as QEMU counts it: the disk, and what wraps both.
	WireBytes uint64 `json:"wire_bytes"`
}

func (m diskMove) String() string {
	return fmt.Sprintf("%s to %s  blackout %6.1f ms, %s beside the memory, in %.1f s", m.State, m.Target, m.BlackoutMs, fleet.Bytes(m.WireBytes), m.TotalMs/1000)
}

// runDisk measures what a local disk costs a migration.
func runDisk(ctx context.Context, o options) (err error) {
	var f *fleetlab.Fleet
	err = o.step("starting a fleet of two hosts", func() error {
		f, err = fleetlab.Start(ctx, fleetlab.Config{Binary: o.godwit, Image: o.image, Hosts: []fleetlab.Host{{Name: hosts[0]}, {Name: hosts[1]}}})
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var report diskReport
	for i, c := range diskCases {
		moves, err := o.moveDisk(ctx, f, fmt.Sprintf("disk%d", i), c)
		report.Runs = append(report.Runs, moves...)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	report.judge()
	o.diskTables(report)
	return errors.Join(writeJSON(o.path("disk"), report), broken(report.Targets))
}

// moveDisk has one VM move there and back.
func (o options) moveDisk(ctx context.Context, f *fleetlab.Fleet, name string, c diskCase) (moves []diskMove, err error) {
	o.say("")
	var vm *fleetlab.Guest
	err = o.step(c.name+": booting a VM", func() (err error) {
		vm, err = o.bootDisk(ctx, f, name, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	times := o.runs
	if times == 0 {
		times = diskTimes
	}
	for i := range times {
		var one diskMove
		err := o.during(fmt.Sprintf("%3d/%d", i+1, times), func() (_ string, err error) {
			one, err = moveOnce(ctx, f, name, c, i)
			return one.String(), err
		})
		if err != nil {
			return moves, err
		}
		moves = append(moves, one)
		if one.State != "succeeded" {
			return moves, fmt.Errorf("migration %d: %s", i+1, one.Cause)
		}
	}
	return moves, vm.Remove(ctx)
}

// bootDisk boots a VM, and again when its disk has been filled.
func (o options) bootDisk(ctx context.Context, f *fleetlab.Fleet, name string, c diskCase) (*fleetlab.Guest, error) {
	config := fleetlab.GuestConfig{Name: name, Host: hosts[0], Memory: o.memory, Load: o.load(), Records: c.records}
	if c.disk {
		config.Disks = []*godwitv1.Disk{{Name: "data", Kind: string(fleet.DiskLocal), Format: "raw", SizeBytes: uint64(diskSize)}}
	}
	vm, err := f.Boot(ctx, config)
	if err != nil || !c.disk {
		return vm, err
	}
	if _, err := f.API.VM.Stop(ctx, &godwitv1.StopVMRequest{Name: name}); err != nil {
		return vm, err
	}
	if err := vm.AwaitEnd(ctx); err != nil {
		return vm, err
	}
	if err := fillDisk(f, hosts[0]); err != nil {
		return vm, err
	}
	if _, err := f.API.VM.Start(ctx, &godwitv1.StartVMRequest{Name: name}); err != nil {
		return vm, err
	}
	if err := vm.AwaitRunning(ctx); err != nil {
		return vm, err
	}
	return vm, vm.AwaitAnswer(ctx)
}

// fillDisk writes what can't be compressed behind the records, in four pieces.
func fillDisk(f *fleetlab.Fleet, host string) error {
	images, err := filepath.Glob(filepath.Join(f.AgentDir(host), "disks", "*", "*", "data.raw"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("the host has the images %v: %w", images, err)
	}
	image, err := os.OpenFile(images[0], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{})
	const pieces = 4
	buffer := make([]byte, 1<<20)
	for piece := range int64(pieces) {
		at := io.NewOffsetWriter(image, piece*int64(diskSize/pieces)+int64(diskSize/pieces/2))
		if _, err = io.CopyBuffer(at, io.LimitReader(noise, int64(diskUsed/pieces)), buffer); err != nil {
			break
		}
	}
	return errors.Join(err, image.Sync(), image.Close())
}

func moveOnce(ctx context.Context, f *fleetlab.Fleet, name string, c diskCase, number int) (one diskMove, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*moveWithin)
	defer cancel()
	source, target := hosts[number%2], hosts[1-number%2]
	before, err := sentBytes(ctx, f, source)
	if err != nil {
		return one, err
	}
	m, err := f.Migrate(ctx, &godwitv1.CreateMigrationRequest{Vm: name, Target: target}, nil)
	if err != nil {
		return one, err
	}
	after, err := sentBytes(ctx, f, source)
	out := m.GetOutcome()
	phases := map[string]float64{}
	for _, phase := range out.GetPhases() {
		phases[phase.GetName()] = phase.GetMs()
	}
	return diskMove{
		BlackoutPhasesMs: phases,
		Case:             c.name, State: m.GetState(), Cause: m.GetCause(), Target: target, BlackoutMs: out.GetBlackoutMs(), TotalMs: out.GetTotalMs(),
		WireBytes: after - before - min(out.GetBytes(), after-before),
	}, err
}

// sentBytes reads what a host has sent to all others, by proc(5), net/dev.
func sentBytes(ctx context.Context, f *fleetlab.Fleet, host string) (sum uint64, err error) {
	text, err := f.Lab.Host(host).Command(ctx, "cat", "/proc/net/dev").Output()
	for line := range strings.Lines(string(text)) {
		name, counts, found := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(counts)
		const sent = 8
		if !found || len(fields) <= sent || name != lab.HostDevice {
			continue
		}
		var bytes uint64
		if _, err := fmt.Sscan(fields[sent], &bytes); err != nil {
			return 0, err
		}
		sum += bytes
	}
	if err == nil && sum == 0 {
		err = fmt.Errorf("%s has no %s", host, lab.HostDevice)
	}
	return sum, err
}
