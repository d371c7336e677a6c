package e2e

import (
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// The agent of a VM's old host is killed while that host forwards. Who is there, beside
// the tap that the VM has left, loses nothing.
func TestForwardingWithoutAnAgent(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) { c.Client, c.Networks = "h1", 1 })
	g := boot(t, f, fleetlab.GuestConfig{})
	c := call(t, f, g, probe.UDPConfig{Rate: 1000})
	m := during(t, f, g, "settling", func(*godwitv1.Migration) {
		awaitNoQEMU(t, f, "h1")
		worker, err := f.Agent("h1").Worker()
		if err != nil {
			t.Fatal(err)
		}
		if err := worker.Kill(); err != nil {
			t.Fatal(err)
		}
		if left, err := f.Inventory(t.Context(), "h1"); err != nil || len(left.Taps) != 1 {
			t.Errorf("the killed agent's host has %v, %v: it does not forward", left, err)
		}
	})
	demand(t, f, g, m, "succeeded")
	awaitLog(t, f.Agent("h1"), "has ended and is started again", 1)
	c.end(t)
}
