package e2e

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

var (
	// slow makes a copy last some seconds.
	slow = &godwitv1.MigrationPolicy{BandwidthMax: 24 << 20, OnPredictedFailure: "go-on"}
	// crawling makes it last until it is cancelled.
	crawling = &godwitv1.MigrationPolicy{BandwidthMax: 1 << 20, OnPredictedFailure: "go-on"}
)

// during starts a slow migration to h2, does something once when it is in a
// state, and gives it in its final state.
func during(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, state string, do func(*godwitv1.Migration)) *godwitv1.Migration {
	t.Helper()
	return duringA(t, f, g, slow, state, do)
}

// duringA does it with a migration of a policy.
func duringA(
	t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, policy *godwitv1.MigrationPolicy, state string, do func(*godwitv1.Migration),
) *godwitv1.Migration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	done := false
	request := &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: "h2", Policy: policy}
	m, err := f.Migrate(ctx, request, func(m *godwitv1.Migration) {
		if !done && m.GetState() == state && (state != "copying" || m.GetProgress().GetSentBytes() > 0) {
			done = true
			do(m)
		}
	})
	if err != nil {
		t.Fatalf("%v; the migration is %s\n%s", err, m.GetState(), story(m))
	}
	if !done {
		t.Fatalf("it was never seen %s\n%s", state, story(m))
	}
	return m
}

// explained checks that an error has the code, names what matters and says
// what to do.
func explained(t *testing.T, err error, code fleet.Code, words ...string) {
	t.Helper()
	if fleet.CodeOf(err) != code {
		t.Errorf("got %q (%s), want %s", err, fleet.CodeOf(err), code)
		return
	}
	text := err.Error() + " " + fleet.HintOf(err)
	if e, ok := errors.AsType[*fleet.Error](err); ok {
		for _, field := range e.Fields {
			text += fmt.Sprintf(" %s: %s", field.Path, field.Problem)
		}
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q does not say %q", text, word)
		}
	}
	t.Logf("%s", text)
}

// testRefuse asks for what cannot be; nothing may change by it.
func testRefuse(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	c := call(t, f, g, probe.UDPConfig{})
	before := inventories(t, f)
	ask := func(vm, target string) error {
		_, err := f.API.Migration.Create(t.Context(), &godwitv1.CreateMigrationRequest{Vm: vm, Target: target})
		return err
	}
	explained(t, ask("nosuchvm", ""), fleet.NotFound, "nosuchvm")
	explained(t, ask(g.Name, "nosuchhost"), fleet.NotFound, "nosuchhost")
	explained(t, ask(g.Name, "h1"), fleet.NoFit, "h1")

	cordon := func(cordoned bool, hosts ...string) {
		for _, host := range hosts {
			if _, err := f.API.Host.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: host, Cordoned: cordoned}); err != nil {
				t.Fatal(err)
			}
		}
	}
	cordon(true, "h2", "h3")
	explained(t, ask(g.Name, ""), fleet.NoFit, "h2", "h3", "cordoned")
	explained(t, ask(g.Name, "h2"), fleet.NoFit, "h2", "cordoned")
	cordon(false, "h2", "h3")

	_, twin, err := f.Plan(fleetlab.GuestConfig{Name: "twin"})
	if err != nil {
		t.Fatal(err)
	}
	twin.Spec.Ports[0].Ips = []string{g.Addrs[0].String()}
	_, err = f.API.VM.Create(t.Context(), twin)
	explained(t, err, fleet.Invalid, g.Addrs[0].String())

	m := duringA(t, f, g, crawling, "copying", func(m *godwitv1.Migration) {
		explained(t, ask(g.Name, "h3"), fleet.Conflict, m.GetId())
		if _, err := f.API.Migration.Cancel(t.Context(), &godwitv1.CancelMigrationRequest{Id: m.GetId()}); err != nil {
			t.Error(err)
		}
	})
	demand(t, f, g, m, "aborted")
	if after := inventories(t, f); after != before {
		t.Errorf("before: %s\nafter:  %s", before, after)
	}
	c.end(t)
}

// testFail has targets that turn out not to be able to take a VM.
func testFail(t *testing.T, f *fleetlab.Fleet, o odd) {
	disk := filepath.Join(o.hidden, "disk.raw")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		target string
		guest  fleetlab.GuestConfig
		arm    func(*testing.T, *fleetlab.Guest) (disarm func())
		says   []string
	}{
		{"disk", "h3", fleetlab.GuestConfig{Disks: []*godwitv1.Disk{{Name: "root", Kind: "file", Path: disk, Format: "raw"}}}, nil,
			[]string{"h3", "root", disk}},
		{"qemu", "h3", fleetlab.GuestConfig{}, func(t *testing.T, _ *fleetlab.Guest) func() {
			if err := os.WriteFile(o.broken, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return func() { _ = os.Remove(o.broken) } // it is in a folder of the test's
		}, []string{"h3", "this QEMU is broken"}},
		{"tap", "h2", fleetlab.GuestConfig{}, func(t *testing.T, g *fleetlab.Guest) func() {
			name := tapName(g.Name, 2, "eth0")
			ip(t, f, "h2", "tuntap", "add", "dev", name, "mode", "tap")
			return func() { ip(t, f, "h2", "link", "delete", name) }
		}, []string{"h2", "gwt", "already"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := boot(t, f, test.guest)
			c := call(t, f, g, probe.UDPConfig{})
			disarm := func() {}
			if test.arm != nil {
				disarm = test.arm(t, g)
			}
			before := inventories(t, f)
			ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
			defer cancel()
			m, err := f.Migrate(ctx, &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: test.target}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if m.GetState() != "aborted" {
				t.Errorf("it is %s\n%s", m.GetState(), story(m))
			}
			for _, word := range test.says {
				if !strings.Contains(m.GetCause(), word) {
					t.Errorf("%q does not say %q", m.GetCause(), word)
				}
			}
			t.Log(m.GetCause())
			if after := inventories(t, f); after != before {
				t.Errorf("before: %s\nafter:  %s", before, after)
			}
			disarm()
			c.end(t)
		})
	}
}

// tapName is how an agent names the tap of a VM's port at an epoch.
func tapName(vm string, epoch int, port string) string {
	hash := fnv.New64a()
	fmt.Fprintf(hash, "%s/%d/%s", vm, epoch, port)
	return fmt.Sprintf("gwt%012x", hash.Sum64()&(1<<48-1))
}

func ip(t *testing.T, f *fleetlab.Fleet, host string, args ...string) {
	t.Helper()
	if text, err := f.Lab.Host(host).Command(t.Context(), "ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, text)
	}
}

// awaitLog polls until a program has said something so many times.
func awaitLog(t *testing.T, p *fleetlab.Process, words string, times int) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(migrateWithin); ; {
		if text, err := p.Log(); err != nil {
			t.Error(err)
			return
		} else if strings.Count(text, words) >= times {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Errorf("%s never said %q", p.LogPath(), words)
			return
		}
	}
}

// testRestart kills programs and starts them again. Whatever becomes of the
// migration, the VM runs at one place and its client loses nothing.
func testRestart(t *testing.T, f *fleetlab.Fleet) {
	restart := func(t *testing.T, p *fleetlab.Process) {
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	ready := func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
		defer cancel()
		if err := errors.Join(f.AwaitServer(ctx), f.AwaitHosts(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("agent at rest", func(t *testing.T) {
		g := boot(t, f, fleetlab.GuestConfig{})
		c := call(t, f, g, probe.UDPConfig{})
		restart(t, f.Agent("h1"))
		awaitLog(t, f.Agent("h1"), "session open", 2) // until then the old one may seem to be there
		ready(t)
		migrate(t, f, g, "h2", "succeeded")
		c.end(t)
	})
	t.Run("no server", func(t *testing.T) {
		g := boot(t, f, fleetlab.GuestConfig{})
		c := call(t, f, g, probe.UDPConfig{Rate: 100}) // what comes in three seconds fits into a tap
		m := during(t, f, g, "copying", func(*godwitv1.Migration) {
			if err := f.Server().Kill(); err != nil {
				t.Error(err)
			}
			awaitLog(t, f.Agent("h1"), "the target gave up, and the source runs on", 1)
			if err := f.Server().Start(); err != nil {
				t.Error(err)
			}
		})
		ready(t)
		demand(t, f, g, m, "aborted")
		for _, word := range []string{"h1", "h2", "gave"} {
			if !strings.Contains(m.GetCause(), word) {
				t.Errorf("cause %q does not say %q", m.GetCause(), word)
			}
		}
		t.Log(m.GetCause())
		c.end(t)
	})
	for _, test := range []struct {
		name    string
		process *fleetlab.Process
	}{
		{"source", f.Agent("h1")},
		{"target", f.Agent("h2")},
		{"server", f.Server()},
	} {
		t.Run(test.name+" while copying", func(t *testing.T) {
			g := boot(t, f, fleetlab.GuestConfig{})
			c := call(t, f, g, probe.UDPConfig{})
			m := during(t, f, g, "copying", func(*godwitv1.Migration) { restart(t, test.process) })
			t.Logf("%s: %s", m.GetState(), m.GetCause())
			ready(t)
			if m.GetState() != "succeeded" && m.GetState() != "aborted" {
				t.Fatalf("it is %s: %s\n%s", m.GetState(), m.GetCause(), story(m))
			}
			demand(t, f, g, m, m.GetState())
			c.end(t)
		})
	}
}
