package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// godwit is a fleet with one VM.
type godwit struct {
	fleet *fleetlab.Fleet
	vm    *fleetlab.Guest
	at    int // index of the VM's host
}

// hosts are those that the VM goes between.
var hosts = [...]string{"h1", "h2"}

func startGodwit(ctx context.Context, o options) (subject, error) {
	f, err := fleetlab.Start(ctx, fleetlab.Config{Binary: o.godwit, Image: o.image})
	if err != nil {
		return nil, err
	}
	vm, err := f.Boot(ctx, fleetlab.GuestConfig{Name: "bench", Host: hosts[0], Memory: o.memory})
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &godwit{fleet: f, vm: vm}, nil
}

func (*godwit) name() string          { return "godwit" }
func (g *godwit) client() probe.Place { return g.fleet.Client }
func (g *godwit) guest() []netip.Addr { return g.vm.Addrs }
func (g *godwit) close() error        { return g.fleet.Close() }

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
	return run{
		BlackoutMs: outcome.GetBlackoutMs(), TotalMs: outcome.GetTotalMs(), Bytes: outcome.GetBytes(), OwnMs: outcome.GetOwnMs(),
	}, nil
}
