package e2e

import (
	"context"
	"testing"

	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

// TestReplicas takes one server after the other away, and one member of their
// etcd, in the middle of migrations of one VM. Another server takes over, the VM
// runs at one place, and its client loses nothing.
func TestReplicas(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) {
		c.Servers, c.Etcd, c.EtcdProgram = 3, 3, build(t, "internal/lab/etcd")
	})
	g := boot(t, f, fleetlab.GuestConfig{})
	for _, test := range []struct {
		name  string
		state string
		do    func(t *testing.T, target *fleetlab.Process) (again func())
	}{
		{"leader while preparing", "preparing", func(t *testing.T, _ *fleetlab.Process) func() { return killLeader(t, f) }},
		{"leader while copying", "copying", func(t *testing.T, _ *fleetlab.Process) func() { return killLeader(t, f) }},
		{"leader hangs while copying", "copying", func(t *testing.T, _ *fleetlab.Process) func() { return holdLeader(t, f) }},
		// The target asks when the leader is gone, and is answered by another.
		{"leader at the commit", "switching", func(t *testing.T, target *fleetlab.Process) func() {
			again := killLeader(t, f)
			resume(t, target)
			return again
		}},
		{"leader after the commit", "settling", func(t *testing.T, _ *fleetlab.Process) func() { return killLeader(t, f) }},
		{"member of etcd while copying", "copying", func(t *testing.T, _ *fleetlab.Process) func() {
			member := f.Etcds()[1]
			kill(t, member)
			return func() { start(t, member) }
		}},
	} {
		fine := t.Run(test.name, func(t *testing.T) {
			c := call(t, f, g, probe.UDPConfig{Rate: 100})
			again := func() {}
			m := disturb(t, f, g, test.state, func(t *testing.T, target *fleetlab.Process) { again = test.do(t, target) })
			again()
			endedWell(t, f, g, m)
			c.end(t)
			if test.state == "switching" || test.state == "settling" {
				t.Logf("%v\n%s", m.GetOutcome(), story(m))
				if m.GetState() != "succeeded" {
					t.Errorf("it is %s: %s", m.GetState(), m.GetCause())
				}
			}
		})
		if !fine {
			return // what follows would only fail of it
		}
	}
}

// killLeader kills the server that leads and gives what starts it again.
func killLeader(t *testing.T, f *fleetlab.Fleet) (again func()) {
	t.Helper()
	leader := leaderOf(t, f)
	kill(t, leader)
	return func() { start(t, leader) }
}

// holdLeader stops the server that leads for as long as the migration takes.
func holdLeader(t *testing.T, f *fleetlab.Fleet) (again func()) {
	t.Helper()
	leader := leaderOf(t, f)
	if err := leader.Pause(); err != nil {
		t.Error(err)
	}
	return func() { resume(t, leader) }
}

func leaderOf(t *testing.T, f *fleetlab.Fleet) *fleetlab.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), migrateWithin)
	defer cancel()
	leader, err := f.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return f.Servers()[leader]
}
