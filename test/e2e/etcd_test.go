package e2e

import (
	"context"
	"errors"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// TestExternalEtcd runs the main flows of TestFleet on a store that is
// an etcd of its own, and then takes that away.
func TestExternalEtcd(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) { c.Etcd, c.EtcdProgram = 1, build(t, "internal/lab/etcd") })
	t.Run("migrate", func(t *testing.T) {
		g := boot(t, f, fleetlab.GuestConfig{Ports: 2})
		for _, target := range []string{"h2", "h1"} {
			c := call(t, f, g, probe.UDPConfig{Rate: 500})
			m := migrate(t, f, g, target, "succeeded")
			c.end(t)
			t.Logf("to %s: %v", target, m.GetOutcome())
		}
	})
	t.Run("cancel", func(t *testing.T) {
		g := boot(t, f, fleetlab.GuestConfig{})
		c := call(t, f, g, probe.UDPConfig{})
		demand(t, f, g, cancelCopy(t, f, g), "aborted")
		demand(t, f, g, cancelSwitch(t, f, g, fleetlab.AllSent), "aborted")
		c.end(t)
	})
	t.Run("refuse", func(t *testing.T) { testRefuse(t, f) })
	t.Run("lose", func(t *testing.T) { testLoseStore(t, f) })
}

// testLoseStore kills the store, and what stands on it, in the middle of
// migrations of one VM. Whatever becomes of them, the VM runs at one place and
// its client loses nothing.
func testLoseStore(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	for _, test := range []struct {
		name  string
		state string
		do    func(t *testing.T, target *fleetlab.Process)
	}{
		{"server while copying", "copying", func(t *testing.T, _ *fleetlab.Process) { revive(t, f.Server(), nil) }},
		{"etcd while copying", "copying", func(t *testing.T, _ *fleetlab.Process) { revive(t, f.Etcd(), nil) }},
		{"etcd and server while copying", "copying", func(t *testing.T, _ *fleetlab.Process) {
			revive(t, f.Etcd(), func() { kill(t, f.Server()) })
			start(t, f.Server())
		}},
		// The copy ends meanwhile: the hand-over begins without a store.
		{"etcd until it is missed", "copying", func(t *testing.T, _ *fleetlab.Process) {
			revive(t, f.Etcd(), func() { storeIsMissed(t, g) })
		}},
		// What hosts say meanwhile, they say once.
		{"etcd while preparing", "preparing", func(t *testing.T, _ *fleetlab.Process) {
			revive(t, f.Etcd(), func() { storeIsMissed(t, g); storeIsMissed(t, g) })
		}},
		// The target does not ask, and the deadline passes once.
		{"etcd at the deadline of the switch", "switching", func(t *testing.T, _ *fleetlab.Process) {
			revive(t, f.Etcd(), func() { storeIsMissed(t, g); storeIsMissed(t, g) })
		}},
		{"etcd at the commit", "switching", func(t *testing.T, target *fleetlab.Process) {
			revive(t, f.Etcd(), func() {
				resume(t, target)
				storeIsMissed(t, g)
			})
		}},
	} {
		fine := t.Run(test.name, func(t *testing.T) {
			// So slow that the target's tap can keep what comes while the store is away.
			c := call(t, f, g, probe.UDPConfig{Rate: 100})
			m := disturb(t, f, g, test.state, test.do)
			endedWell(t, f, g, m)
			c.end(t)
		})
		if !fine {
			return // what follows would only fail of it
		}
	}
}

// disturb begins a slow migration, does something once while it is in a state,
// and gives it in its final state. If the state is that of the hand-over, the
// target's agent is paused before, and waits to be resumed to ask for the
// commit: so it cannot be faster. At the latest it is resumed when the hand-over
// has ended without it.
func disturb(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, state string, do func(*testing.T, *fleetlab.Process)) *godwitv1.Migration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	vm, err := g.Record(ctx)
	if err != nil {
		t.Fatal(err)
	}
	request := &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: "h1", Policy: slow}
	if vm.GetOwner().GetHost() == "h1" {
		request.Target = "h2"
	}
	target, held, done := f.Agent(request.Target), false, false
	m, err := f.Migrate(ctx, request, func(m *godwitv1.Migration) {
		switch {
		case !held && state == "switching" && m.GetState() == "copying":
			held = true
			if err := target.Pause(); err != nil {
				t.Error(err)
			}
		case !done && m.GetState() == state && (state == "preparing" || m.GetProgress().GetSentBytes() > 0):
			done = true
			do(t, target)
		case held && done && m.GetState() != state:
			resume(t, target)
		}
	})
	if held && !done {
		resume(t, target) // nobody else would
	}
	if err != nil || !done {
		t.Fatalf("%v; disturbed: %v; the migration is %s\n%s", err, done, m.GetState(), story(m))
	}
	return m
}

// revive kills a program, and starts it again after meanwhile, if there is one.
// Failures are no reason to leave it dead: others wait for it.
func revive(t *testing.T, p *fleetlab.Process, meanwhile func()) {
	t.Helper()
	kill(t, p)
	if meanwhile != nil {
		meanwhile()
	}
	start(t, p)
}

func kill(t *testing.T, p *fleetlab.Process) {
	t.Helper()
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
}

func start(t *testing.T, p *fleetlab.Process) {
	t.Helper()
	if err := p.Start(); err != nil {
		t.Error(err)
	}
}

func resume(t *testing.T, p *fleetlab.Process) {
	t.Helper()
	if err := p.Continue(); err != nil {
		t.Error(err)
	}
}

// storeIsMissed returns when the server has found that its store does not
// answer.
func storeIsMissed(t *testing.T, g *fleetlab.Guest) {
	t.Helper()
	_, err := g.Record(t.Context())
	explained(t, err, fleet.Unavailable, g.Name)
}

// endedWell demands that a migration ended as one may that was disturbed, once
// all programs have found each other again.
func endedWell(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, m *godwitv1.Migration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	if err := errors.Join(f.AwaitServer(ctx), f.AwaitHosts(ctx)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %s", m.GetState(), m.GetCause())
	if m.GetState() != "succeeded" && m.GetState() != "aborted" {
		t.Fatalf("it is %s: %s\n%s", m.GetState(), m.GetCause(), story(m))
	}
	demand(t, f, g, m, m.GetState())
}
