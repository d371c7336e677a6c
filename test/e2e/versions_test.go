package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// oldQEMU gives the program of QEMU 7.2.
func oldQEMU(t *testing.T) string {
	t.Helper()
	old := os.Getenv("GODWIT_QEMU72")
	if old == "" {
		t.Skip("GODWIT_QEMU72 names no QEMU 7.2; 'make qemu72' gets one")
	}
	return old
}

// TestQEMUVersions moves a VM between hosts with QEMU 7.2 and 10.0, from each
// to each. The machine type is that of the oldest, where the VM starts.
func TestQEMUVersions(t *testing.T) {
	old := oldQEMU(t)
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Hosts = []fleetlab.Host{{Name: "h1", QEMU: old}, {Name: "h2"}, {Name: "h3", QEMU: old}}
	})
	g := boot(t, f, fleetlab.GuestConfig{})
	for _, target := range []string{"h3", "h2", "h1"} {
		c := call(t, f, g, probe.UDPConfig{Rate: 500})
		m := migrate(t, f, g, target, "succeeded")
		c.end(t)
		t.Logf("to %s: %v", target, m.GetOutcome())
	}
}

// TestQEMUUpgrade moves a VM that runs by QEMU 7.2 away from a host on which a
// newer one was installed since, and back to it: first it is sent as that one can,
// and then as the newer one can.
func TestQEMUUpgrade(t *testing.T) {
	old := oldQEMU(t)
	program := filepath.Join(t.TempDir(), "qemu")
	installQEMU(t, program, old)
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Hosts = []fleetlab.Host{{Name: "h1", QEMU: program}, {Name: "h2"}}
	})
	g := boot(t, f, fleetlab.GuestConfig{})
	before := hostOf(t, f, "h1").GetQemuVersion()
	checkRunBy(t, g, before)

	installQEMU(t, program, "qemu-system-x86_64")
	agent := f.Agent("h1")
	if err := errors.Join(agent.Stop(), f.AwaitDown(t.Context(), "h1"), agent.Start(), f.AwaitHosts(t.Context())); err != nil {
		t.Fatal(err)
	}
	after := hostOf(t, f, "h1")
	if after.GetQemuVersion() == before {
		t.Fatalf("h1 still has QEMU %s", before)
	}
	checkRunBy(t, g, before)
	for _, move := range []struct {
		target string
		unheld bool
	}{{"h2", true}, {"h1", false}} {
		c := call(t, f, g, probe.UDPConfig{Rate: 100})
		m := migrate(t, f, g, move.target, "succeeded")
		c.end(t)
		t.Logf("to %s: %v", move.target, m.GetOutcome())
		onePass := move.unheld && after.GetAccel() == "tcg"
		if m.GetUnheld() != move.unheld || (m.GetConnections() == 1) != move.unheld || onePass && len(m.GetPasses()) > 1 {
			t.Errorf("to %s: unheld is %t, with %d connections and %d passes", move.target, m.GetUnheld(), m.GetConnections(), len(m.GetPasses()))
		}
		checkRunBy(t, g, after.GetQemuVersion())
	}
}

// installQEMU puts a program that runs a QEMU in the place of another.
func installQEMU(t *testing.T, program, qemu string) {
	t.Helper()
	path, err := exec.LookPath(qemu)
	if err == nil {
		err = os.WriteFile(program+".new", fmt.Appendf(nil, "#!/bin/sh\nexec %s \"$@\"\n", path), 0o755)
	}
	if err = errors.Join(err, os.Rename(program+".new", program)); err != nil {
		t.Fatal(err)
	}
}

func hostOf(t *testing.T, f *fleetlab.Fleet, name string) *godwitv1.Host {
	t.Helper()
	answer, err := f.API.Host.Get(t.Context(), &godwitv1.GetHostRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return answer.GetHost()
}

// checkRunBy demands that the record of a VM tells by what QEMU it runs.
func checkRunBy(t *testing.T, g *fleetlab.Guest, version string) {
	t.Helper()
	vm, err := g.Record(t.Context())
	if err != nil || vm.GetQemuVersion() != version || len(vm.GetMigrationCapabilities()) == 0 {
		t.Errorf("%s runs by QEMU %q, %v; want %q", g.Name, vm.GetQemuVersion(), err, version)
	}
}
