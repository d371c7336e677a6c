package e2e

import (
	"testing"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// TestMigrate moves VMs under different traffic there and back.
func TestMigrate(t *testing.T) {
	f := newFleet(t, nil)
	for _, test := range []struct {
		name    string
		guest   fleetlab.GuestConfig
		traffic probe.UDPConfig
	}{
		{"plain", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 500}},
		{"fast", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 5000}},
		{"large", fleetlab.GuestConfig{}, probe.UDPConfig{Rate: 500, Size: 1472}},
		{"ports", fleetlab.GuestConfig{Ports: 2, Queues: 2}, probe.UDPConfig{Rate: 500}},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := boot(t, f, test.guest)
			c := call(t, f, g, test.traffic)
			for _, target := range []string{"h2", "h1"} {
				m := migrate(t, f, g, target, "succeeded")
				t.Logf("to %s: %v", target, m.GetOutcome())
				c.answered(t)
			}
			c.end(t)
		})
	}
}
