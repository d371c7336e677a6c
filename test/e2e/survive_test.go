package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// TestSurvival upgrades every program, and crashes hosts, in the middle of
// migrations, and gives hosts up.
func TestSurvival(t *testing.T) {
	var program string
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Networks, c.Boots = 1, true
		program = c.Binary
	})
	t.Run("upgrade", func(t *testing.T) { testUpgrade(t, newUpgrades(t, f, program)) })
	t.Run("crash", func(t *testing.T) { testCrash(t, f) })
	t.Run("lost", func(t *testing.T) { testLost(t, f) })
}

// upgrades puts one build in the place of another.
type upgrades struct {
	fleet    *fleetlab.Fleet
	program  string // which all programs of the fleet run
	versions []string
	next     int
}

func newUpgrades(t *testing.T, f *fleetlab.Fleet, program string) *upgrades {
	t.Helper()
	u := &upgrades{fleet: f, program: program, versions: []string{"v9.1.0", "v9.2.0"}}
	for _, version := range u.versions {
		command := exec.CommandContext(t.Context(), "go", "build",
			"-ldflags", "-X godwit.dev/godwit/internal/cli.linkedVersion="+version, "-o", program+"-"+version, "godwit.dev/godwit/cmd/godwit")
		if text, err := command.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, text)
		}
	}
	return u
}

// install replaces the program with the next build, or with the first one again,
// as a package manager does: those that run it go on with the old one. It gives
// the version of the new one.
func (u *upgrades) install(t *testing.T) string {
	t.Helper()
	version := u.versions[u.next%len(u.versions)]
	u.next++
	fresh := u.program + ".new"
	if err := errors.Join(os.Link(u.program+"-"+version, fresh), os.Rename(fresh, u.program)); err != nil {
		t.Fatal(err)
	}
	text, err := exec.CommandContext(t.Context(), u.program, "version").Output()
	if err != nil || !strings.HasPrefix(string(text), "godwit "+version) {
		t.Fatalf("it calls itself %q, %v", text, err)
	}
	return version
}

// restart has the server and both hosts run what is installed. A process that
// hangs is killed, as service managers do.
func (u *upgrades) restart(t *testing.T, hung *fleetlab.Process) {
	t.Helper()
	for _, one := range []*fleetlab.Process{u.fleet.Server(), u.fleet.Agent("h1"), u.fleet.Agent("h2")} {
		end := one.Stop
		if one == hung {
			end = one.Kill
		}
		if err := errors.Join(end(), one.Start()); err != nil {
			t.Error(err)
		}
	}
}

// check demands that the server and both hosts run a version.
func (u *upgrades) check(t *testing.T, version string) {
	t.Helper()
	if running, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", u.fleet.Server().PID())); err != nil || running != u.program {
		t.Errorf("the server runs %s, %v", filepath.Base(running), err)
	}
	for _, host := range []string{"h1", "h2"} {
		answer, err := u.fleet.API.Host.Get(t.Context(), &godwitv1.GetHostRequest{Name: host})
		if got := answer.GetHost().GetAgentVersion(); err != nil || got != version {
			t.Errorf("the agent of %s is %q, %v; want %s", host, got, err, version)
		}
	}
}

// testUpgrade replaces the server and the agents of both hosts in every state in
// which something is under way.
func testUpgrade(t *testing.T, u *upgrades) {
	f := u.fleet
	g := boot(t, f, fleetlab.GuestConfig{})
	for _, state := range []string{"copying", "switching", "settling"} {
		fine := t.Run(state, func(t *testing.T) {
			version := u.install(t)
			c := call(t, f, g, probe.UDPConfig{Rate: 100})
			m := disturb(t, f, g, state, func(t *testing.T, target *fleetlab.Process) {
				hung := target
				if state != "switching" {
					hung = nil // only there it is held
				}
				u.restart(t, hung)
			})
			endedWell(t, f, g, m)
			if state == "settling" && m.GetState() != "succeeded" {
				t.Errorf("it is %s after the commit", m.GetState())
			}
			c.end(t)
			u.check(t, version)
		})
		if !fine {
			return
		}
	}
}

// testCrash takes hosts' power. A VM goes down with its host, and with no other
// one; what is said of it is true, and it can be started again.
func testCrash(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	t.Run("at rest", func(t *testing.T) {
		reboot(t, f, "h1")
		startAgain(t, g, "h1")
	})
	for _, test := range []struct {
		name, state string
		victim      func(*godwitv1.Migration) string
		ends        []string // states that the migration may end in
		survives    bool     // the VM does
	}{
		{"source while copying", "copying", (*godwitv1.Migration).GetSource, []string{"aborted"}, false},
		{"target while copying", "copying", (*godwitv1.Migration).GetTarget, []string{"aborted"}, true},
		{"target while settling", "settling", (*godwitv1.Migration).GetTarget, []string{"succeeded", "needs-operator"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := call(t, f, g, probe.UDPConfig{Rate: 100})
			m := during(t, f, g, test.state, func(m *godwitv1.Migration) { reboot(t, f, test.victim(m)) })
			t.Logf("%s: %s", m.GetState(), m.GetCause())
			if !slices.Contains(test.ends, m.GetState()) {
				t.Errorf("it is %s: %s\n%s", m.GetState(), m.GetCause(), story(m))
			}
			if test.survives {
				demand(t, f, g, m, m.GetState())
				c.end(t)
				return
			}
			c.drop(t)
			startAgain(t, g, test.victim(m))
		})
	}
}

// reboot crashes a host and has it come back.
func reboot(t *testing.T, f *fleetlab.Fleet, host string) {
	t.Helper()
	if err := errors.Join(f.Crash(host), f.Agent(host).Start()); err != nil {
		t.Error(err)
	}
}

// startAgain demands that a VM is known to have gone down with a host, and starts
// it on h1. Whether the end of the instance or the reboot is the cause depends on
// what is heard first: after the commit the end is the migration's.
func startAgain(t *testing.T, g *fleetlab.Guest, host string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	if err := g.AwaitEnd(ctx); err != nil {
		t.Fatal(err)
	}
	vm, err := g.Record(ctx)
	causes := []string{"host " + host + " was rebooted", "the instance on " + host + " ended after the commit: its instance has ended"}
	if err != nil || vm.GetPhase() != "failed" || !slices.Contains(causes, vm.GetCause()) || vm.GetOwner().GetHost() != "" || vm.GetMigration() != "" {
		t.Errorf("it is %v, %v; want failed with %s", vm, err, host)
	}
	if err := errors.Join(g.Start(ctx, "h1"), g.AwaitRunning(ctx), g.AwaitAnswer(ctx)); err != nil {
		t.Fatal(err)
	}
}
