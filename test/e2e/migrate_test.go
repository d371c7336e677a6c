package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// odd is what host h3 of the tests lacks or does wrong.
type odd struct {
	hidden string // a folder that it does not see
	broken string // while this file exists, its QEMU does not start
}

// TestFleet runs all tests that can share a fleet, one after the other.
func TestFleet(t *testing.T) {
	o := odd{hidden: t.TempDir(), broken: filepath.Join(t.TempDir(), "broken")}
	qemu := filepath.Join(t.TempDir(), "qemu")
	script := "#!/bin/sh\n[ ! -e '" + o.broken + "' ] || case \" $* \" in *' -incoming '*) echo 'this QEMU is broken' >&2; exit 1;; esac\n" +
		"exec qemu-system-x86_64 \"$@\"\n"
	if err := os.WriteFile(qemu, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Hosts = []fleetlab.Host{{Name: "h1"}, {Name: "h2"}, {
			Name: "h3", QEMU: qemu,
			Wrap: fleetlab.OwnMounts("mount -t tmpfs none '" + o.hidden + "'"),
		}}
	})
	t.Run("migrate", func(t *testing.T) { testMigrate(t, f) })
	t.Run("console", func(t *testing.T) { testConsole(t, f) })
	t.Run("cancel", func(t *testing.T) { testCancel(t, f) })
	t.Run("refuse", func(t *testing.T) { testRefuse(t, f) })
	t.Run("fail", func(t *testing.T) { testFail(t, f, o) })
	t.Run("twin", func(t *testing.T) { testTwin(t, f) })
	t.Run("restart", func(t *testing.T) { testRestart(t, f) })
}

// testMigrate moves VMs under different traffic there and back.
func testMigrate(t *testing.T, f *fleetlab.Fleet) {
	for _, test := range []struct {
		name    string
		guest   fleetlab.GuestConfig
		traffic probe.UDPConfig
		targets []string
	}{
		{"plain", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 500}, []string{"h2", "h1"}},
		{"beside the client", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 500}, []string{"h3", "h2"}},
		{"fast", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 5000}, []string{"h2", "h1"}},
		{"large", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 500, Size: 1472}, []string{"h2", "h1"}},
		{"ports", fleetlab.GuestConfig{Ports: 2}, probe.UDPConfig{Rate: 500}, []string{"h2", "h1"}},
		{"queues", fleetlab.GuestConfig{CPUs: 2, Queues: 2}, probe.UDPConfig{Rate: 500}, []string{"h2", "h1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := boot(t, f, test.guest)
			for _, target := range test.targets {
				// Anew each time: an emulated guest on a busy machine falls behind
				// 5,000 packets/s, and its port's queue has room for some seconds.
				c := call(t, f, g, test.traffic)
				m := migrate(t, f, g, target, "succeeded")
				c.end(t)
				t.Logf("to %s: %v", target, m.GetOutcome())
			}
		})
	}
}
