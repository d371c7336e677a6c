package e2e

import (
	"os"
	"testing"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// TestQEMUVersions moves a VM between hosts with QEMU 7.2 and 10.0, from each
// to each. The machine type is that of the oldest, where the VM starts.
func TestQEMUVersions(t *testing.T) {
	old := os.Getenv("GODWIT_QEMU72")
	if old == "" {
		t.Skip("GODWIT_QEMU72 names no QEMU 7.2; 'make qemu72' gets one")
	}
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
