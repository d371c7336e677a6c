package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/witness"
)

const (
	vmName = "web1"
	qemu   = "qemu-system-x86_64"
	// migrateWithin bounds one migration.
	migrateWithin = 10 * time.Minute
	// endWithin bounds the end of the traffic after an interruption.
	endWithin = 5 * time.Second
)

// The hosts that the VM goes between.
var stops = [...]string{"h1", "h2"}

// Config says what to show.
type Config struct {
	Name       string // of the lab; made up if empty
	Binary     string // the godwit program
	Image      image.Image
	Memory     fleet.Bytes
	Ports      int // of the VM, 1 or 2
	DirtyMiB   int // memory that the guest writes in a second
	Traffic    TrafficConfig
	Migrations int
	Cancel     bool // cancel one more hand-over while it is going on
	Keep       bool // leave everything running

	Progress io.Writer                      // told what happens
	Paint    func(code, text string) string // colours by an SGR code; may be nil
}

// Run shows it all. The report has what was done until an error. It is an error
// too if a migration did not end as it should, or the client lost anything.
func Run(ctx context.Context, config Config) (report Report, err error) {
	report.Migrations = []Migration{}
	if err := check(os.Geteuid()); err != nil {
		return report, err
	}
	if config.Paint == nil {
		config.Paint = func(_, text string) string { return text }
	}
	d := &show{config: config, screen: screen{config.Progress, config.Paint}}
	d.say("%s", config.Paint(bold, "A fleet on this machine: a server, three hosts, and a client of a VM."))
	d.say("Nothing outside of it is touched.\n")
	err = d.during("starting the server, and the agents of h1, h2 and h3", func() (err error) {
		d.fleet, err = fleetlab.Start(ctx, fleetlab.Config{
			Name: config.Name, Binary: config.Binary, Image: config.Image, Networks: config.Ports,
		})
		return err
	})
	if err != nil {
		return report, err
	}
	kept := false
	defer func() {
		if !kept {
			d.say("%s", config.Paint(faint, "· removing everything"))
		}
		err = errors.Join(err, d.fleet.Close())
	}()
	if err := d.run(ctx, &report); err != nil {
		return report, err
	}
	if config.Keep {
		if err := d.keep(); err != nil {
			return report, err
		}
		kept = true
	}
	return report, report.verdict()
}

// check finds what would end the demo later, before anything is begun or said.
func check(euid int) error {
	if euid != 0 {
		return &fleet.Error{
			Code: fleet.Denied, Op: "start the demo", Cause: "only root may make network namespaces",
			Hint: "run it as root, for example with sudo",
		}
	}
	if _, err := exec.LookPath(qemu); err != nil {
		return &fleet.Error{
			Code: fleet.Unsupported, Op: "start the demo", Cause: "there is no program " + qemu,
			Hint: "run `make setup` in the source tree, or install QEMU 7.2 or newer (Debian: qemu-system-x86)",
		}
	}
	return nil
}

// show is one run of the demo.
type show struct {
	screen
	config  Config
	fleet   *fleetlab.Fleet
	guest   *fleetlab.Guest
	traffic *Traffic
}

func (d *show) run(ctx context.Context, report *Report) (err error) {
	c := d.config
	err = d.during(fmt.Sprintf("booting the VM %s on %s: 1 vCPU, %v", vmName, stops[0], c.Memory), func() (err error) {
		d.guest, err = d.fleet.Boot(ctx, fleetlab.GuestConfig{
			Name: vmName, Host: stops[0], Memory: c.Memory, Ports: c.Ports,
			Load: witness.Load{BytesPerSecond: int64(c.DirtyMiB) << 20, SetMiB: dirtySet(c)},
		})
		return err
	})
	if err != nil {
		return err
	}
	where := ""
	if c.Ports > 1 {
		where = fmt.Sprintf(" on each of %d ports", c.Ports)
	}
	d.say("· the client sends it %d UDP packets/s%s, and holds a TCP stream\n", c.Traffic.Rate, where)
	d.traffic, err = StartTraffic(ctx, d.fleet.Client, d.guest.Addrs, c.Traffic)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
		defer cancel()
		if stopErr := d.traffic.Stop(ctx); err == nil {
			err = stopErr
		}
	}()
	at := 0 // the stop where the VM is
	for i := range c.Migrations {
		from, to := stops[at], stops[1-at]
		d.say("%s", c.Paint(bold, fmt.Sprintf("Migration %d of %d: %s → %s", i+1, c.Migrations, from, to)))
		one, err := d.migrate(ctx, to, d.follow(), report)
		if err != nil {
			return err
		}
		one.want = succeeded
		if one.State == succeeded {
			at = 1 - at
		}
	}
	if c.Cancel {
		d.say("%s", c.Paint(bold, "One more to "+stops[1-at]+", cancelled when the source has stopped"))
		if err := d.cancelled(ctx, stops[1-at], report); err != nil {
			return err
		}
	}
	d.summary(*report)
	return nil
}

// dirtySet leaves the guest half of its memory for itself.
func dirtySet(c Config) int {
	if c.DirtyMiB == 0 {
		return 0
	}
	return int(c.Memory / fleet.MiB / 2)
}

// migrate gives the migration's place in the report.
func (d *show) migrate(ctx context.Context, target string, each func(*godwitv1.Migration), report *Report) (*Migration, error) {
	ctx, cancel := context.WithTimeout(ctx, migrateWithin)
	defer cancel()
	before := d.traffic.Now()
	m, err := d.fleet.Migrate(ctx, &godwitv1.CreateMigrationRequest{Vm: vmName, Target: target, Reason: "demo"}, each)
	if err != nil {
		return nil, err
	}
	client := d.traffic.Between(ctx, before, d.traffic.Now())
	d.migration(m, client)
	report.Migrations = append(report.Migrations, describe(m, client))
	if err := d.traffic.Refresh(ctx); err != nil {
		return nil, fmt.Errorf("the VM does not answer after migration %s (%s): %w", m.GetId(), m.GetState(), err)
	}
	return &report.Migrations[len(report.Migrations)-1], nil
}

// cancelled begins a migration and cancels it in the middle of its hand-over,
// which may have been committed by then.
func (d *show) cancelled(ctx context.Context, target string, report *Report) error {
	asked, want := false, aborted
	follow := d.follow()
	one, err := d.migrate(ctx, target, func(m *godwitv1.Migration) {
		follow(m)
		if asked || m.GetState() != "switching" {
			return
		}
		asked = true
		_, err := d.fleet.API.Migration.Cancel(ctx, &godwitv1.CancelMigrationRequest{Id: m.GetId(), Reason: "demo of a cancelled hand-over"})
		if err != nil {
			want = succeeded
			d.say("  the cancel came too late: %v", err)
		}
	}, report)
	if err != nil {
		return err
	}
	if !asked && one.State == succeeded {
		want = succeeded
		d.say("  the hand-over was over before it could be cancelled")
	}
	one.want = want
	return nil
}

// keep leaves everything in place and says what can be done with it.
func (d *show) keep() error {
	if err := d.fleet.Keep(); err != nil {
		return err
	}
	name := d.fleet.Lab.Name()
	d.say("%s", d.config.Paint(bold, "The lab "+name+" stays. As root on this machine:"))
	for _, line := range [...]string{
		"export GODWIT_SERVER=unix://" + d.fleet.SocketPath(),
		d.config.Binary + " vm list",
		d.config.Binary + " migrate " + vmName + " --watch",
		"ip netns exec " + d.fleet.Lab.Host(stops[0]).Name() + " ip link     # what " + stops[0] + " has",
		"ip netns exec " + d.fleet.Client.Name() + " bash       # on the client; the VM is " + strings.TrimSpace(fmt.Sprint(d.guest.Addrs[0])),
		"ls " + d.fleet.Lab.Dir() + "/logs     # of the server and the agents",
		d.config.Binary + " demo --remove " + name + "     # when done",
	} {
		d.say("  %s", line)
	}
	return nil
}
