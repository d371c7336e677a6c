package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/image"
)

const (
	tcpRounds = 3 // of every case, unless --runs says otherwise
	// flowTime is how long a flow lasts, and moveAfter when in it the VM moves.
	flowTime  = 12 * time.Second
	moveAfter = 4 * time.Second
	// still is who moves nothing.
	still = "none"
)

var flowDirections = [...]string{"to-guest", "from-guest"}

// tcpParty is a contestant with a network of its own and an iperf3 server in its guest.
type tcpParty struct {
	contestant
	network string
	place   *lab.Namespace // of its client
}

// tcpMigration is a migration in a flow. AtS times are seconds since the flow began.
type tcpMigration struct {
	RequestedAtS float64 `json:"requested_at_s"`
	StoppedAtS   float64 `json:"stopped_at_s"`
	ResumedAtS   float64 `json:"resumed_at_s"`
	BlackoutMs   float64 `json:"blackout_ms"`
	TotalMs      float64 `json:"total_ms"`
	Bytes        uint64  `json:"bytes"`

	BlackoutPhasesMs map[string]float64 `json:"blackout_phases_ms,omitempty"`
}

// runTCP measures the throughput of TCP through migrations.
func runTCP(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-tcp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.image, err = tcpImage(ctx, dir); err != nil {
		return err
	}
	f, err := o.startTCPFleet(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var parties []tcpParty
	defer func() {
		for _, p := range parties {
			err = errors.Join(err, p.close())
		}
	}()
	for _, start := range []func(context.Context, options, *fleetlab.Fleet) (tcpParty, error){startOverlay, startProvider, startPeer} {
		p, err := start(ctx, o, f)
		if err != nil {
			return err
		}
		parties = append(parties, p)
		if err := o.readyTCP(ctx, p); err != nil {
			return err
		}
	}
	runs, err := o.runFlows(ctx, parties)
	if len(runs) == 0 {
		return err
	}
	report := summarizeTCP(o.mbit, runs)
	report.print(o.screen)
	return errors.Join(err, writeJSON(o.path("tcp"), report), drawTCP(o.plotPath("tcp"), runs), broken(report.Targets))
}

// tcpImage makes a guest's image that has iperf3, too.
func tcpImage(ctx context.Context, dir string) (image.Image, error) {
	if _, err := exec.LookPath(iperf); err != nil {
		return image.Image{}, &fleet.Error{Code: fleet.NotFound, Op: "measure TCP", Subject: iperf, Err: err,
			Cause: "the program is not there", Hint: "run scripts/setup tcp"}
	}
	cache, err := image.CacheDir()
	if err != nil {
		return image.Image{}, err
	}
	return image.BuildWith(ctx, cache, dir, iperf)
}

func (o options) startTCPFleet(ctx context.Context) (f *fleetlab.Fleet, err error) {
	err = o.step("starting a fleet of three hosts", func() error {
		f, err = fleetlab.Start(ctx, fleetlab.Config{Binary: o.godwit, Image: o.image, Fabric: hosts[:]})
		return err
	})
	return f, err
}

func startOverlay(ctx context.Context, o options, f *fleetlab.Fleet) (tcpParty, error) {
	return startTCPGodwit(ctx, o, f, "overlay", false)
}

func startProvider(ctx context.Context, o options, f *fleetlab.Fleet) (tcpParty, error) {
	return startTCPGodwit(ctx, o, f, "provider", true)
}

func startTCPGodwit(ctx context.Context, o options, f *fleetlab.Fleet, network string, fabric bool) (tcpParty, error) {
	g := &godwit{fleet: f}
	err := o.step(network+": booting Godwit's VM", func() (err error) {
		g.vm, err = f.Boot(ctx, fleetlab.GuestConfig{
			Name: "tcp-" + network, Host: hosts[0], Memory: o.memory, Load: o.load(), Provider: fabric, Run: flowServer[:],
		})
		return err
	})
	return tcpParty{contestant: g, network: network, place: f.Client}, err
}

// startPeer starts plain QEMU, in an overlay of bridges that learn.
func startPeer(ctx context.Context, o options, f *fleetlab.Fleet) (tcpParty, error) {
	o.serve = flowServer[:]
	c, err := startPlain(ctx, o, f)
	if err != nil {
		return tcpParty{}, err
	}
	return tcpParty{contestant: c, network: "overlay", place: c.(*plain).place}, nil
}

// readyTCP waits for the guest's iperf3, and has the VM move for the first time.
func (o options) readyTCP(ctx context.Context, p tcpParty) error {
	err := o.step("waiting for iperf3", func() error {
		ctx, cancel := context.WithTimeout(ctx, bootWithin)
		defer cancel()
		return shortFlow(ctx, p.place, p.guest()[0])
	})
	if err != nil {
		return err
	}
	return o.warmUp(ctx, p)
}

// runFlows gives what was measured until an error, too.
func (o options) runFlows(ctx context.Context, parties []tcpParty) (runs []tcpRun, err error) {
	rounds := o.runs
	if rounds == 0 {
		rounds = tcpRounds
	}
	for round := range rounds {
		for _, p := range parties {
			for _, direction := range flowDirections {
				for _, who := range movers(p) {
					one := tcpRun{Network: p.network, Direction: direction, Who: who}
					err := o.during(fmt.Sprintf("%3d/%d  %-26s", round+1, rounds, one.name()), func() (string, error) {
						err := one.measure(ctx, p, o.mbit)
						return one.String(), err
					})
					if err != nil {
						return runs, fmt.Errorf("%s, round %d: %w", one.name(), round+1, err)
					}
					runs = append(runs, one)
				}
			}
		}
	}
	return runs, nil
}

// movers: the same flow without a migration is for Godwit's VMs.
func movers(p tcpParty) []string {
	if _, peer := p.contestant.(*plain); peer {
		return []string{p.name()}
	}
	return []string{still, p.name()}
}

// measure makes one flow, with a migration or without.
func (r *tcpRun) measure(ctx context.Context, p tcpParty, mbit int) error {
	ctx, cancel := context.WithTimeout(ctx, moveWithin)
	defer cancel()
	if err := proceed(p); err != nil {
		return err
	}
	f, err := startFlow(ctx, p.place, flowSpec{guest: p.guest()[0], length: flowTime, reverse: r.Direction == flowDirections[1], mbit: mbit})
	if err != nil {
		return err
	}
	if r.Who != still {
		r.Migration, err = moveInFlow(ctx, p, f)
	}
	result, endErr := f.end()
	if err := errors.Join(err, endErr); err != nil {
		return err
	}
	r.fill(result)
	return pause(p)
}

// moveInFlow moves the VM when it is time.
func moveInFlow(ctx context.Context, p tcpParty, f *flow) (*tcpMigration, error) {
	select {
	case <-time.After(time.Until(f.begun.Add(moveAfter))):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	requested := time.Since(f.begun)
	one, err := p.move(ctx)
	if err != nil {
		return nil, err
	}
	resumed := requested.Seconds() + one.TotalMs/1000
	return &tcpMigration{
		RequestedAtS: requested.Seconds(), StoppedAtS: resumed - one.BlackoutMs/1000, ResumedAtS: resumed,
		BlackoutMs: one.BlackoutMs, TotalMs: one.TotalMs, Bytes: one.Bytes, BlackoutPhasesMs: one.BlackoutPhasesMs,
	}, nil
}
