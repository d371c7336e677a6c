package e2e

import (
	"strings"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
)

// slowLink is that of the hosts of TestForecast, in bytes a second.
const slowLink = 12_500_000

// A guest that changes its memory faster than the link carries it is not moved, and
// notices nothing; slowed, as its policy may allow, it is. A calm one is moved as foretold,
// and one that turns hard in the copy is left where it is.
func TestForecast(t *testing.T) {
	f := newFleet(t, func(c *fleetlab.Config) { c.Hosts = []fleetlab.Host{{Name: "h1"}, {Name: "h2"}} })
	for _, host := range f.Hosts() {
		if err := f.Lab.Cap(host, slowLink); err != nil {
			t.Fatal(err)
		}
	}
	g := boot(t, f, fleetlab.GuestConfig{})
	load := func(multiple float64) witness.Load {
		return witness.Load{BytesPerSecond: int64(multiple * slowLink), SetMiB: 32}
	}
	set := func(l witness.Load) {
		t.Helper()
		if err := g.Probe().SetLoad(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	within := &godwitv1.MigrationPolicy{CopyLimitMs: (40 * time.Second).Milliseconds()}

	set(load(3))
	dry, err := f.API.Migration.Forecast(t.Context(), &godwitv1.ForecastMigrationRequest{Vm: g.Name, Policy: within})
	if err != nil {
		t.Fatal(err)
	}
	if !dry.GetCancelled() || dry.GetTarget() != "h2" {
		t.Errorf("a dry run says %v", dry)
	}
	c := call(t, f, g, probe.UDPConfig{Rate: 100})
	m := migrateBy(t, f, g, "h2", within)
	demand(t, f, g, m, "aborted")
	if !m.GetForeseen().GetFailurePredicted() || len(m.GetPasses()) > 0 || !strings.Contains(m.GetCause(), "predicted to fail") {
		t.Errorf("it ended before it was foretold: %s, %v", m.GetCause(), m.GetForeseen())
	}
	c.end(t)

	helped := &godwitv1.MigrationPolicy{CopyLimitMs: (2 * time.Minute).Milliseconds(), BlackoutMaxMs: 1500, ThrottleMax: new(int32(95))}
	m = migrateBy(t, f, g, "h2", helped)
	demand(t, f, g, m, "succeeded")
	if m.GetForeseen().GetThrottle().GetInitial() == 0 {
		t.Errorf("it was not slowed: %v", m.GetForeseen())
	}
	t.Logf("slowed: %s; %v", m.GetForeseen().GetThrottle().GetWhy(), m.GetOutcome())

	set(load(0.2))
	m = migrateBy(t, f, g, "h1", within)
	demand(t, f, g, m, "succeeded")
	seen := m.GetForeseen()
	first, came := seen.GetForecasts()[0], seen.GetOutcome()
	t.Logf("foretold %v, came %v", first, came)
	if first.GetProbability() < 0.9 || !came.GetEnded() || came.GetTotalMs() < first.GetTotalMs().GetExpected()/2 || came.GetTotalMs() > 2*first.GetTotalMs().GetExpected() {
		t.Errorf("foretold %v, came %v", first, came)
	}

	turns, hard := load(0.2), load(4)
	turns.For, turns.Then = 5*time.Second, &hard
	set(turns)
	c = call(t, f, g, probe.UDPConfig{Rate: 100})
	m = migrateBy(t, f, g, "h2", within)
	demand(t, f, g, m, "aborted")
	if !m.GetForeseen().GetFailurePredicted() || len(m.GetPasses()) < 2 {
		t.Errorf("it was not cancelled in the copy for what was foretold: %s\n%s", m.GetCause(), story(m))
	}
	c.end(t)
}

// migrateBy moves a guest by a policy.
func migrateBy(t *testing.T, f *fleetlab.Fleet, g *fleetlab.Guest, target string, policy *godwitv1.MigrationPolicy) *godwitv1.Migration {
	t.Helper()
	m, err := f.Migrate(t.Context(), &godwitv1.CreateMigrationRequest{Vm: g.Name, Target: target, Policy: policy}, nil)
	if err != nil {
		t.Fatalf("migrate: %v (%s)", err, fleet.CodeOf(err))
	}
	return m
}
