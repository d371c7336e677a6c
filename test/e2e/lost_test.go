package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

// testLost declares hosts lost: their VMs start elsewhere, and what a host that
// comes back still has of them is removed.
func testLost(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	t.Run("off", func(t *testing.T) {
		if err := f.Crash("h1"); err != nil {
			t.Fatal(err)
		}
		giveUp(t, f, g, "h1")
		comeUp(t, g, "h2")
		comeBack(t, f, "h1")
	})
	t.Run("not off", func(t *testing.T) {
		if err := f.Agent("h2").Kill(); err != nil {
			t.Fatal(err)
		}
		if pids, err := f.QEMUs("h2"); err != nil || len(pids) != 1 {
			t.Fatalf("without its agent h2 has QEMUs %v, %v", pids, err)
		}
		giveUp(t, f, g, "h2")
		comeBack(t, f, "h2")
		awaitNoQEMU(t, f, "h2")
		comeUp(t, g, "h1")
	})
}

// giveUp declares a host lost that has the guest.
func giveUp(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, host string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	if err := f.AwaitDown(ctx, host); err != nil {
		t.Fatal(err)
	}
	answer, err := f.API.Host.DeclareLost(ctx, &godwitv1.DeclareHostLostRequest{Name: host, IsOff: true})
	if err != nil {
		t.Fatal(err)
	}
	vms := answer.GetVms()
	if len(vms) != 1 || vms[0].GetName() != g.Name || vms[0].GetPhase() != "failed" || vms[0].GetCause() != "host "+host+" was declared lost by the operator" {
		t.Errorf("the VMs of %s are %v", host, vms)
	}
}

// comeUp starts a guest on a host.
func comeUp(t *testing.T, g *fleetlab.Guest, host string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	if err := errors.Join(g.Start(ctx, host), g.AwaitRunning(ctx), g.AwaitAnswer(ctx)); err != nil {
		t.Fatal(err)
	}
}

// comeBack starts the agent of a lost host again, and lets the host take VMs.
func comeBack(t *testing.T, f *fleetlab.Fleet, host string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	err := f.Agent(host).Start()
	if err == nil {
		_, err = f.API.Host.Cordon(ctx, &godwitv1.CordonHostRequest{Name: host})
	}
	if err = errors.Join(err, f.AwaitHosts(ctx)); err != nil {
		t.Fatal(err)
	}
}

// awaitNoQEMU polls until nothing runs on a host.
func awaitNoQEMU(t *testing.T, f *fleetlab.Fleet, host string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(migrateWithin)
	for {
		pids, err := f.QEMUs(host)
		if err != nil {
			t.Fatal(err)
		}
		if len(pids) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s still has QEMUs %v", host, pids)
		}
	}
}
