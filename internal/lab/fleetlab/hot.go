package fleetlab

import (
	"context"
	"fmt"
	"net/netip"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/witness"
)

// AddDisk gives the guest one more disk while it runs.
func (g *Guest) AddDisk(ctx context.Context, disk *godwitv1.Disk) error {
	answer, err := g.fleet.API.VM.AddDisk(ctx, &godwitv1.AddDiskRequest{Name: g.Name, Disk: disk})
	if err != nil {
		return err
	}
	return g.awaitChange(ctx, answer.GetVm())
}

// RemoveDisk takes a disk from it.
func (g *Guest) RemoveDisk(ctx context.Context, disk string) error {
	answer, err := g.fleet.API.VM.RemoveDisk(ctx, &godwitv1.RemoveDiskRequest{Name: g.Name, Disk: disk})
	if err != nil {
		return err
	}
	return g.awaitChange(ctx, answer.GetVm())
}

// AddPort gives the guest a port in the network of that number, has the guest bring it
// up, and gives the port's name.
func (g *Guest) AddPort(ctx context.Context, i int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	inside, port := g.port(i, networks[i])
	answer, err := g.fleet.API.VM.AddPort(ctx, &godwitv1.AddPortRequest{Name: g.Name, Port: port})
	if err != nil {
		return "", err
	}
	if err := g.awaitChange(ctx, answer.GetVm()); err != nil {
		return "", err
	}
	err = g.fleet.await(ctx, "the guest to find its port", func(ctx context.Context) (bool, error) {
		return g.Probe().AddPort(ctx, inside) == nil, nil
	})
	g.Addrs = append(g.Addrs, inside.Addresses[0].Addr())
	return port.GetName(), err
}

// RemovePort takes the port from it that was added last.
func (g *Guest) RemovePort(ctx context.Context, port string) error {
	answer, err := g.fleet.API.VM.RemovePort(ctx, &godwitv1.RemovePortRequest{Name: g.Name, Port: port})
	if err != nil {
		return err
	}
	g.Addrs = append([]netip.Addr{}, g.Addrs[:len(g.Addrs)-1]...)
	return g.awaitChange(ctx, answer.GetVm())
}

// Write has the guest write to its disks as soon as it has one.
func (g *Guest) Write(ctx context.Context, load witness.Disk) error {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	return g.fleet.await(ctx, "the guest to find its disk", func(ctx context.Context) (bool, error) {
		return g.Probe().SetDisk(ctx, load) == nil, nil
	})
}

// awaitChange waits until a change of the VM's hardware is done.
func (g *Guest) awaitChange(ctx context.Context, vm *godwitv1.VM) error {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	return g.fleet.await(ctx, "the change of vm "+g.Name, func(ctx context.Context) (bool, error) {
		now, err := g.Record(ctx)
		change := now.GetChange()
		if err == nil && change.GetState() == string(fleet.ChangeFailed) {
			err = fmt.Errorf("it has failed: %s", change.GetCause())
		}
		return err == nil && change.GetSequence() >= vm.GetChange().GetSequence() && change.GetState() == string(fleet.ChangeDone), err
	})
}
