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
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/qmp"
)

const (
	migrationPort = "4444"
	plainName     = "plain" // in its certificate
	eventQueue    = 64
	// bootWithin bounds the guest's boot.
	bootWithin = 90 * time.Second
)

// plain is a VM with nothing around it, in the lab of a fleet.
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

func startPlain(ctx context.Context, o options, f *fleetlab.Fleet) (contestant, error) {
	p := &plain{options: o, lab: f.Lab}
	err := o.step("booting plain QEMU's VM", func() error { return p.start(ctx) })
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *plain) start(ctx context.Context) (err error) {
	if p.place, err = connectPlain(ctx, p.lab); err != nil {
		return err
	}
	if err := p.certify(); err != nil {
		return err
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
func (p *plain) pid() (int, error)   { return p.running.cmd.Process.Pid, nil }

// launch starts a QEMU like those that Godwit starts, apart from the network.
func (p *plain) launch(ctx context.Context, host string, incoming bool) (*machine, error) {
	p.started++
	socket := filepath.Join(p.lab.Dir(), "plain"+strconv.Itoa(p.started)+".sock")
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
	args := witness.Args{Ports: []witness.Port{{MAC: plainMAC, Addresses: []netip.Prefix{plainGuest}}}, Load: p.load(), Run: p.serve}
	line := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "null",
		"-machine", "q35", "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "qemu64", "-smp", "1",
		"-m", strconv.FormatUint(uint64(p.memory/fleet.MiB), 10),
		"-kernel", p.image.Kernel, "-initrd", p.image.Initrd, "-append", args.CommandLine(),
		"-netdev", "tap,id=nic,ifname=" + plainTap + ",script=no,downscript=no",
		"-device", "virtio-net-pci,netdev=nic,romfile=,rx_queue_size=1024,mac=" + plainMAC.String(),
		"-chardev", "socket,id=qmp,server=on,wait=off,fd=3", "-mon", "chardev=qmp,mode=control",
	}
	for _, endpoint := range []string{"server", "client"} {
		line = append(line, "-object", "tls-creds-x509,id="+endpoint+",endpoint="+endpoint+",verify-peer=on,dir="+p.credentials())
	}
	if incoming {
		line = append(line, "-incoming", "defer")
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
	m := &machine{cmd: cmd, monitor: monitor}
	if incoming {
		if err := m.listen(ctx); err != nil {
			return nil, errors.Join(err, m.end())
		}
	}
	return m, nil
}

// listen makes a target wait for its source.
func (m *machine) listen(ctx context.Context) error {
	if err := qmp.MigrateSetParameters(ctx, m.monitor, qmp.MigrateSetParametersArgs{TLSCreds: new("server")}); err != nil {
		return err
	}
	return qmp.MigrateIncoming(ctx, m.monitor, qmp.MigrateIncomingArgs{URI: new("tcp:0.0.0.0:" + migrationPort)})
}

func (p *plain) credentials() string { return filepath.Join(p.lab.Dir(), "plain-tls") }

// certify makes one certificate that both ends show and expect.
func (p *plain) certify() error {
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		return err
	}
	key, request, err := pki.NewKeyAndRequest(plainName)
	if err != nil {
		return err
	}
	certificate, err := authority.Sign(request, pki.Identity{Kind: pki.Host, Name: plainName}, pki.Names{}, 0, time.Now())
	if err != nil {
		return err
	}
	both := pki.Credentials{Certificate: certificate, Key: key, Authority: authority.CertificatePEM()}
	return both.WriteQEMUCreds(p.credentials())
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
	// QEMU's default is 128 MiB/s, less than it can do here. Godwit has no limit
	// unless it is given one, so neither has; and both use QEMU's TLS.
	alike := qmp.MigrateSetParametersArgs{MaxBandwidth: new(int64(1 << 50)), TLSCreds: new("client"), TLSHostname: new(plainName)}
	if err := qmp.MigrateSetParameters(ctx, source.monitor, alike); err != nil {
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

// close ends the QEMU; the rest ends with the lab.
func (p *plain) close() error {
	if p.running == nil {
		return nil
	}
	return p.running.end()
}
