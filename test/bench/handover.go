package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

const defaultPairs = 10

// contestant moves a VM between two hosts and back, once per call of move.
type contestant interface {
	name() string
	client() probe.Place
	guest() []netip.Addr
	// move fills in what the hosts' side of a run measures.
	move(ctx context.Context) (run, error)
	// pid is that of the QEMU that the VM runs in.
	pid() (int, error)
	close() error
}

// pause holds a contestant's QEMU, so that it takes no time from the other.
func pause(c contestant) error { return send(c, syscall.SIGSTOP) }

// proceed lets it go on.
func proceed(c contestant) error { return send(c, syscall.SIGCONT) }

func send(c contestant, signal syscall.Signal) error {
	pid, err := c.pid()
	if err == nil {
		err = syscall.Kill(pid, signal)
	}
	if err != nil {
		return fmt.Errorf("send %s to the QEMU of %s: %w", signal, c.name(), err)
	}
	return nil
}

// runHandover measures pairs of Godwit and plain QEMU by turns.
func runHandover(ctx context.Context, o options) (err error) {
	var f *fleetlab.Fleet
	err = o.step("starting a fleet of three hosts", func() error {
		f, err = fleetlab.Start(ctx, fleetlab.Config{Binary: o.godwit, Image: o.image})
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var contestants []contestant
	defer func() {
		for _, c := range contestants {
			err = errors.Join(err, c.close())
		}
	}()
	for _, start := range []func(context.Context, options, *fleetlab.Fleet) (contestant, error){startGodwit, startPlain} {
		c, err := start(ctx, o, f)
		if err != nil {
			return err
		}
		contestants = append(contestants, c)
		if err := o.warmUp(ctx, c); err != nil {
			return err
		}
	}
	runs, err := o.runPairs(ctx, contestants)
	if len(runs) == 0 {
		return err
	}
	report := summarize(runs)
	report.print(o.screen)
	return errors.Join(err, writeJSON(o.path("handover"), report), broken(report.Targets))
}

// warmUp moves a VM that has just booted for the first time, unmeasured: its
// guest has still this and that to do.
func (o options) warmUp(ctx context.Context, c contestant) error {
	ctx, cancel := context.WithTimeout(ctx, moveWithin)
	defer cancel()
	return o.step("warming "+c.name()+" up", func() error {
		if _, err := c.move(ctx); err != nil {
			return err
		}
		return pause(c)
	})
}

// runPairs gives what was measured until an error, too.
func (o options) runPairs(ctx context.Context, contestants []contestant) (runs []run, err error) {
	pairs := o.runs
	if pairs == 0 {
		pairs = defaultPairs
	}
	for pair := range pairs {
		for _, c := range contestants {
			var one run
			err := o.during(fmt.Sprintf("%3d/%d  %-6s", pair+1, pairs, c.name()), func() (_ string, err error) {
				one, err = o.measure(ctx, c)
				return one.String(), err
			})
			if err != nil {
				return runs, fmt.Errorf("%s, run %d: %w", c.name(), pair+1, err)
			}
			runs = append(runs, one)
		}
	}
	return runs, nil
}

// measure makes one run under traffic.
func (o options) measure(ctx context.Context, c contestant) (one run, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveWithin)
	defer cancel()
	if err := proceed(c); err != nil {
		return one, err
	}
	caller, err := dial(ctx, c.client(), c.guest(), traffic{Straggle: straggle})
	if err != nil {
		return one, err
	}
	saw, err := caller.during(ctx, func() (err error) {
		one, err = c.move(ctx)
		return err
	})
	stream := caller.hangUp(ctx)
	if err != nil {
		return one, err
	}
	one.Who, one.seen = c.name(), saw
	one.TCPBroken, one.TCPReason = stream.Broken, stream.Reason
	return one, pause(c)
}

// godwit is a VM of the fleet.
type godwit struct {
	fleet *fleetlab.Fleet
	vm    *fleetlab.Guest
	at    int // index of the VM's host
}

func startGodwit(ctx context.Context, o options, f *fleetlab.Fleet) (contestant, error) {
	g := &godwit{fleet: f}
	err := o.step("booting Godwit's VM", func() (err error) {
		g.vm, err = f.Boot(ctx, fleetlab.GuestConfig{Name: "bench", Host: hosts[0], Memory: o.memory, Load: o.load()})
		return err
	})
	return g, err
}

func (*godwit) name() string          { return "godwit" }
func (g *godwit) client() probe.Place { return g.fleet.Client }
func (g *godwit) guest() []netip.Addr { return g.vm.Addrs }
func (g *godwit) close() error        { return nil } // with the fleet

// pid reads what QEMU has written into the instance's folder.
func (g *godwit) pid() (int, error) {
	paths, err := filepath.Glob(filepath.Join(g.fleet.AgentDir(hosts[g.at]), "instances", g.vm.Name+".*", "qemu.pid"))
	if err != nil {
		return 0, err
	}
	if len(paths) != 1 {
		return 0, fmt.Errorf("%s has %d instances of %s", hosts[g.at], len(paths), g.vm.Name)
	}
	text, err := os.ReadFile(paths[0])
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func (g *godwit) move(ctx context.Context) (run, error) {
	target := 1 - g.at
	m, err := g.fleet.Migrate(ctx, &godwitv1.CreateMigrationRequest{Vm: g.vm.Name, Target: hosts[target]}, nil)
	if err != nil {
		return run{}, err
	}
	if m.GetState() != "succeeded" {
		return run{}, fmt.Errorf("migration %s %s: %s", m.GetId(), m.GetState(), m.GetCause())
	}
	g.at = target
	outcome := m.GetOutcome()
	phases := map[string]float64{}
	for _, phase := range outcome.GetPhases() {
		phases[phase.GetName()] = phase.GetMs()
	}
	return run{
		BlackoutPhasesMs: phases,
		BlackoutMs:       outcome.GetBlackoutMs(), TotalMs: outcome.GetTotalMs(), Bytes: outcome.GetBytes(), OwnMs: outcome.GetOwnMs(),
	}, nil
}
