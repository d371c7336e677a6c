package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
	"godwit.dev/godwit/internal/qmp"
)

const (
	clientHost    = "h3"
	tapName       = "tap0"
	migrationPort = "4444"
	eventQueue    = 64
	// bootWithin bounds the guest's boot.
	bootWithin = 90 * time.Second
)

var (
	plainMAC   = net.HardwareAddr{0x52, 0x54, 0, 0x91, 0, 1}
	plainGuest = netip.MustParsePrefix("10.20.0.10/24")
)

// plain is two QEMUs and bridges that learn.
type plain struct {
	options
	lab     *lab.Lab
	place   *lab.Namespace
	at      int // index of the VM's host
	running *machine
	started int // QEMUs so far
}

// machine is one QEMU.
type machine struct {
	cmd     *lab.Cmd
	monitor *qmp.Client
}

func startPlain(ctx context.Context, o options) (_ subject, err error) {
	p := &plain{options: o}
	if p.lab, err = lab.New(ctx, lab.Config{Hosts: []string{hosts[0], hosts[1], clientHost}}); err != nil {
		return nil, err
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *plain) start(ctx context.Context) (err error) {
	p.place, err = p.lab.AddClient("client", lab.Port{
		Host: clientHost, Device: "client0", MAC: net.HardwareAddr{2, 0, 0, 0xc1, 0, 9},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.20.0.2/24")},
	})
	if err != nil {
		return err
	}
	for _, host := range []string{hosts[0], hosts[1], clientHost} {
		if err := p.bridge(ctx, host); err != nil {
			return err
		}
	}
	if p.running, err = p.launch(ctx, hosts[p.at], false); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, bootWithin)
	defer cancel()
	knock, err := probe.StartUDP(p.place, probe.UDPConfig{Target: netip.AddrPortFrom(plainGuest.Addr(), 0), Rate: 50, Straggle: time.Millisecond})
	if err != nil {
		return err
	}
	err = knock.Answered(ctx, knock.Begun(), 1)
	_, stopErr := knock.Stop(ctx)
	return errors.Join(err, stopErr)
}

func (*plain) name() string          { return "qemu" }
func (p *plain) client() probe.Place { return p.place }
func (p *plain) guest() []netip.Addr { return []netip.Addr{plainGuest.Addr()} }

// bridge joins a host's tap or client to the others by a bridge and a VXLAN
// device that learn where everybody is.
func (p *plain) bridge(ctx context.Context, host string) error {
	home := p.lab.Host(host)
	commands := [][]string{
		{"ip", "link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0"},
		{"ip", "link", "add", "vx0", "type", "vxlan", "id", "42", "dstport", "4789", "local", home.Addr.String(), "learning"},
		{"ip", "link", "set", "vx0", "master", "br0", "up"},
	}
	for _, other := range []string{hosts[0], hosts[1], clientHost} {
		if other != host {
			commands = append(commands, []string{"bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx0", "dst", p.lab.Host(other).Addr.String()})
		}
	}
	if host == clientHost {
		commands = append(commands, []string{"ip", "link", "set", "client0", "master", "br0"})
	} else {
		commands = append(commands,
			[]string{"ip", "tuntap", "add", "dev", tapName, "mode", "tap", "vnet_hdr"},
			[]string{"ip", "link", "set", tapName, "master", "br0", "up"})
	}
	commands = append(commands, []string{"ip", "link", "set", "br0", "up"})
	for _, command := range commands {
		if text, err := home.Command(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %v: %w: %s", host, command, err, text)
		}
	}
	return nil
}

// launch starts a QEMU like those that Godwit starts, apart from the network.
func (p *plain) launch(ctx context.Context, host string, incoming bool) (*machine, error) {
	p.started++
	socket := filepath.Join(p.lab.Dir(), strconv.Itoa(p.started)+".sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	args := witness.Args{Ports: []witness.Port{{MAC: plainMAC, Addresses: []netip.Prefix{plainGuest}}}}
	line := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "null",
		"-machine", "q35", "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "qemu64", "-smp", "1",
		"-m", strconv.FormatUint(uint64(p.memory/fleet.MiB), 10),
		"-kernel", p.image.Kernel, "-initrd", p.image.Initrd, "-append", args.CommandLine(),
		"-netdev", "tap,id=nic,ifname=" + tapName + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=nic,romfile=,rx_queue_size=1024,mac=" + plainMAC.String(),
		"-chardev", "socket,id=qmp,server=on,wait=off,fd=3", "-mon", "chardev=qmp,mode=control",
	}
	if incoming {
		line = append(line, "-incoming", "tcp:0.0.0.0:"+migrationPort)
	}
	cmd := p.lab.Host(host).Command(context.WithoutCancel(ctx), "qemu-system-x86_64", line...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{file}, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	monitor, err := qmp.Dial(ctx, socket)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return &machine{cmd: cmd, monitor: monitor}, nil
}

// end ends a QEMU.
func (m *machine) end() error {
	m.monitor.Close()
	if err := m.cmd.Process.Kill(); err != nil {
		return err
	}
	_ = m.cmd.Wait() // killed, as it will say
	return nil
}

func (p *plain) move(ctx context.Context) (run, error) {
	begun := time.Now()
	source, to := p.running, 1-p.at
	target, err := p.launch(ctx, hosts[to], true)
	if err != nil {
		return run{}, err
	}
	stops := source.monitor.Subscribe(eventQueue, qmp.EventStop, qmp.EventMigration)
	defer stops.Close()
	resumes := target.monitor.Subscribe(eventQueue, qmp.EventResume)
	defer resumes.Close()
	// Events cost nothing and tell the end; everything else is QEMU's default.
	events := qmp.MigrateSetCapabilitiesArgs{Capabilities: []qmp.MigrationCapabilityStatus{
		{Capability: qmp.MigrationCapabilityEvents, State: true},
	}}
	if err := qmp.MigrateSetCapabilities(ctx, source.monitor, events); err != nil {
		return run{}, errors.Join(err, target.end())
	}
	uri := "tcp:" + net.JoinHostPort(p.lab.Host(hosts[to]).Addr.String(), migrationPort)
	if err := qmp.Migrate(ctx, source.monitor, qmp.MigrateArgs{URI: &uri}); err != nil {
		return run{}, errors.Join(err, target.end())
	}
	stopped, err := awaitCompleted(ctx, stops)
	if err != nil {
		return run{}, errors.Join(err, target.end())
	}
	resumed, err := next(ctx, resumes)
	if err != nil {
		return run{}, errors.Join(err, target.end())
	}
	result, err := qmp.QueryMigrate(ctx, source.monitor)
	if err != nil {
		return run{}, errors.Join(err, target.end())
	}
	p.running, p.at = target, to
	one := run{
		BlackoutMs: milliseconds(resumed.Time.Sub(stopped)), TotalMs: milliseconds(resumed.Time.Sub(begun)),
	}
	if result.RAM != nil {
		one.Bytes = uint64(result.RAM.Transferred)
	}
	return one, source.end()
}

// awaitCompleted follows the source to its end, and gives the time at which it
// stopped.
func awaitCompleted(ctx context.Context, events *qmp.Subscription) (stopped time.Time, err error) {
	for {
		event, err := next(ctx, events)
		if err != nil {
			return stopped, err
		}
		if event.Name == qmp.EventStop {
			stopped = event.Time
			continue
		}
		var migration qmp.MigrationEvent
		if err := event.Decode(&migration); err != nil {
			return stopped, err
		}
		switch migration.Status {
		case "completed":
			return stopped, nil
		case "failed", "cancelled":
			return stopped, fmt.Errorf("QEMU's migration %s", migration.Status)
		}
	}
}

func next(ctx context.Context, events *qmp.Subscription) (qmp.Event, error) {
	select {
	case event, open := <-events.Events():
		if !open {
			return event, events.Err()
		}
		return event, nil
	case <-ctx.Done():
		return qmp.Event{}, ctx.Err()
	}
}

func (p *plain) close() error {
	if p.running != nil {
		return errors.Join(p.running.end(), p.lab.Close())
	}
	return p.lab.Close()
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
