package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// A VM with a port in a provider network and one in an overlay moves, and neither
// loses a packet, by IPv4 and IPv6. A host without the bridge is never its target.
func TestProviderNetwork(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) { c.Fabric = []string{"h1", "h2"} })
	g := boot(t, f, fleetlab.GuestConfig{Provider: true})
	for _, test := range []struct {
		target  string
		traffic probe.UDPConfig
	}{
		{"h2", probe.UDPConfig{Rate: 500}},
		{"h1", probe.UDPConfig{Rate: 1000, Size: probe.MinSize}},
		{"h2", probe.UDPConfig{Rate: 300, Size: 1452}}, // fills a frame of IPv6
	} {
		c := call(t, f, g, test.traffic)
		m := migrate(t, f, g, test.target, "succeeded")
		c.end(t)
		t.Logf("to %s: %v", test.target, m.GetOutcome())
	}

	_, err := f.API.Migration.Create(t.Context(), &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: "h3"})
	if err == nil || !strings.Contains(err.Error(), lab.HostBridge) {
		t.Errorf("a move to a host without the bridge: %v", err)
	}
	c := call(t, f, g, probe.UDPConfig{Rate: 300})
	if err := f.Lab.RemoveHostBridge("h1"); err != nil {
		t.Fatal(err)
	}
	m := migrate(t, f, g, "h1", "aborted")
	if !strings.Contains(m.GetCause(), lab.HostBridge) {
		t.Errorf("a move to a host whose bridge has just gone was aborted: %s", m.GetCause())
	}
	c.end(t)
	awaitRefusal(t, f, g, "h1")
}

// awaitRefusal waits until the server has heard that the host's bridge is gone.
func awaitRefusal(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, host string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for {
		answer, err := f.API.Host.Get(ctx, &godwitv1.GetHostRequest{Name: host})
		if err != nil {
			t.Fatal(err)
		}
		if len(answer.GetHost().GetNetworks().GetBridges()) == 0 {
			break
		}
		<-look.C
	}
	_, err := f.API.Migration.Create(t.Context(), &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: host})
	if err == nil || !strings.Contains(err.Error(), lab.HostBridge) {
		t.Errorf("a move to a host that has no bridge any more: %v", err)
	}
}
