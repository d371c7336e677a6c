package fleetlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
)

const (
	// bootWithin bounds a guest's boot, under emulation on a busy machine.
	bootWithin = 90 * time.Second
	// firstGuest is what the first guest's addresses end with.
	firstGuest = 10
	maxGuests  = 200
)

// GuestConfig says what VM to boot. Fields that are zero get the default.
type GuestConfig struct {
	Name     string
	Host     string      // to start on; placement chooses if empty
	CPUs     int32       // 1
	Memory   fleet.Bytes // 256 MiB
	Ports    int         // one in each of so many overlay networks; 1
	Provider bool        // and its first port is in the provider network
	Queues   int32       // of each port; 1
	Load     witness.Load
	// Records is how many records a second the guest writes to its first disk.
	Records int
	Disks   []*godwitv1.Disk
	Run     []string    // a program that the image has, as witness.Args has it
	Image   image.Image // the fleet's
}

// Guest is a VM that runs the lab's guest.
type Guest struct {
	Name  string
	Addrs []netip.Addr // of its ports

	fleet  *Fleet
	number byte
}

func (c *GuestConfig) complete() {
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Memory == 0 {
		c.Memory = 256 * fleet.MiB
	}
	if c.Ports == 0 {
		c.Ports = 1
	}
}

// Boot creates a VM and waits until its guest answers the client on every
// port.
func (f *Fleet) Boot(ctx context.Context, config GuestConfig) (*Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	g, request, err := f.Plan(config)
	if err != nil {
		return nil, err
	}
	if _, err := f.API.VM.Create(ctx, request); err != nil {
		return nil, err
	}
	if err := g.AwaitRunning(ctx); err != nil {
		return nil, err
	}
	return g, g.AwaitAnswer(ctx)
}

// Plan gives the request that Boot makes, for who wants to change it.
func (f *Fleet) Plan(config GuestConfig) (*Guest, *godwitv1.CreateVMRequest, error) {
	config.complete()
	if config.Image == (image.Image{}) {
		config.Image = f.config.Image
	}
	number := f.guests.Add(1) - 1
	if number >= maxGuests || config.Ports < 1 || config.Ports > f.config.Networks {
		return nil, nil, fmt.Errorf("plan vm %s: it is number %d and has %d ports", config.Name, number, config.Ports)
	}
	g := &Guest{Name: config.Name, fleet: f, number: byte(number)}
	args := witness.Args{Load: config.Load, Disk: witness.Disk{Rate: config.Records}, Run: config.Run}
	spec := &godwitv1.VMSpec{Cpus: config.CPUs, MemoryBytes: uint64(config.Memory), Disks: config.Disks}
	in := networks[:config.Ports]
	if config.Provider {
		in = append([]Network{provider}, in...)
	}
	for i, network := range in {
		port, message := g.port(i, network)
		for _, address := range port.Addresses {
			g.Addrs = append(g.Addrs, address.Addr())
		}
		args.Ports = append(args.Ports, port)
		message.Queues = config.Queues
		spec.Ports = append(spec.Ports, message)
	}
	spec.Boot = &godwitv1.Boot{
		Kernel: config.Image.Kernel, Initrd: config.Image.Initrd, Cmdline: args.CommandLine(),
	}
	return g, &godwitv1.CreateVMRequest{Name: config.Name, Spec: spec, Host: config.Host}, nil
}

// port gives the guest's port in one of the networks, to the guest and to the server.
func (g *Guest) port(i int, in Network) (witness.Port, *godwitv1.Port) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0x90, byte(i), g.number}
	port := witness.Port{MAC: mac, Addresses: in.addresses(firstGuest + g.number)}
	message := &godwitv1.Port{Name: fmt.Sprintf("eth%d", i), Network: in.Name, Mac: mac.String()}
	for _, address := range port.Addresses {
		message.Ips = append(message.Ips, address.Addr().String())
	}
	return port, message
}

// Probe is what asks the guest for its own view, from the client.
func (g *Guest) Probe() probe.Guest { return probe.Guest{Place: g.fleet.Client, Addr: g.Addrs[0]} }

// Record is the VM's record at the server.
func (g *Guest) Record(ctx context.Context) (*godwitv1.VM, error) {
	answer, err := g.fleet.API.VM.Get(ctx, &godwitv1.GetVMRequest{Name: g.Name})
	return answer.GetVm(), err
}

// AwaitRunning waits until the server knows the VM as running.
func (g *Guest) AwaitRunning(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := g.fleet.API.VM.Watch(ctx, &godwitv1.WatchVMsRequest{Name: g.Name})
	if err != nil {
		return err
	}
	defer changes.Close()
	defer cancel() // before Close, which else waits for the server to end the stream
	for changes.Receive() {
		vm := changes.Msg().GetVm()
		switch {
		case changes.Msg().GetDeleted() || vm.GetPhase() == "failed" || vm.GetPhase() == "stopped" && vm.GetCause() != "":
			return &fleet.Error{Code: fleet.Failed, Op: "boot", Subject: "vm " + g.Name, Cause: vm.GetPhase() + ": " + vm.GetCause()}
		case vm.GetPhase() == "running":
			return nil
		}
	}
	return fmt.Errorf("wait for vm %s: %w", g.Name, changes.Err())
}

// AwaitAnswer waits until the guest answers on every port.
func (g *Guest) AwaitAnswer(ctx context.Context) error {
	for _, addr := range g.Addrs {
		knock, err := probe.StartUDP(g.fleet.Client, probe.UDPConfig{
			Target: netip.AddrPortFrom(addr, 0), Rate: 50, Straggle: time.Millisecond,
		})
		if err != nil {
			return err
		}
		err = knock.Answered(ctx, knock.Begun(), 1)
		if _, stopErr := knock.Stop(ctx); err == nil {
			err = stopErr
		}
		if err != nil {
			return fmt.Errorf("vm %s at %s: %w", g.Name, addr, err)
		}
	}
	return nil
}

// Start starts a VM that is down, on a host.
func (g *Guest) Start(ctx context.Context, host string) error {
	_, err := g.fleet.API.VM.Start(ctx, &godwitv1.StartVMRequest{Name: g.Name, Host: host})
	return err
}

// Remove ends the VM and deletes its record.
func (g *Guest) Remove(ctx context.Context) error {
	if err := g.Stop(ctx); err != nil {
		return err
	}
	return g.Delete(ctx)
}

// Stop ends the VM.
func (g *Guest) Stop(ctx context.Context) error {
	if _, err := g.fleet.API.VM.Stop(ctx, &godwitv1.StopVMRequest{Name: g.Name}); err != nil {
		return err
	}
	return g.AwaitEnd(ctx)
}

// Delete deletes the record of a VM that has ended.
func (g *Guest) Delete(ctx context.Context) error {
	_, err := g.fleet.API.VM.Delete(ctx, &godwitv1.DeleteVMRequest{Name: g.Name})
	return err
}

// AwaitEnd waits until the server knows the VM as stopped or failed.
func (g *Guest) AwaitEnd(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := g.fleet.API.VM.Watch(ctx, &godwitv1.WatchVMsRequest{Name: g.Name})
	if err != nil {
		return err
	}
	defer changes.Close()
	defer cancel() // as in AwaitRunning
	for changes.Receive() {
		if phase := changes.Msg().GetVm().GetPhase(); phase == "stopped" || phase == "failed" {
			return nil
		}
	}
	return fmt.Errorf("wait for the end of vm %s: %w", g.Name, changes.Err())
}
