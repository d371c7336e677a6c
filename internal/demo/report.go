package demo

import (
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// Report is what the demo's migrations came to.
type Report struct {
	Migrations []Migration `json:"migrations"`
}

// Migration is one of them: measured by the server and seen by the client.
// Times are milliseconds.
type Migration struct {
	State            string             `json:"state"`
	Source           string             `json:"source"`
	Target           string             `json:"target"`
	TotalMs          float64            `json:"total_ms"` // from the request to the target's first instruction
	Passes           int32              `json:"passes"`
	Bytes            uint64             `json:"bytes"`
	BlackoutMs       float64            `json:"blackout_ms"`
	BlackoutPhasesMs map[string]float64 `json:"blackout_phases_ms"`
	OwnMs            float64            `json:"own_ms"` // the blackout less QEMU's device phase
	Client           Client             `json:"client"`
}

func describe(m *godwitv1.Migration, client Client) Migration {
	outcome := m.GetOutcome()
	one := Migration{
		State: m.GetState(), Source: m.GetSource(), Target: m.GetTarget(),
		TotalMs: outcome.GetTotalMs(), Passes: outcome.GetPasses(), Bytes: outcome.GetBytes(),
		BlackoutMs: outcome.GetBlackoutMs(), OwnMs: outcome.GetOwnMs(),
		BlackoutPhasesMs: map[string]float64{}, Client: client,
	}
	for _, phase := range outcome.GetPhases() {
		one.BlackoutPhasesMs[phase.GetName()] = phase.GetMs()
	}
	return one
}

// Spread is how a figure was distributed over several runs.
type Spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

// SpreadOf gives the spread of values, zero of none.
func SpreadOf(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	median := sorted[half]
	if len(sorted)%2 == 0 {
		median = (sorted[half-1] + sorted[half]) / 2
	}
	return Spread{Min: sorted[0], Median: median, Max: sorted[len(sorted)-1]}
}
