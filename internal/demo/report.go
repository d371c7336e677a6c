package demo

import (
	"fmt"
	"slices"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Report is what the demo's migrations came to.
type Report struct {
	Migrations []Migration `json:"migrations"`
	Error      string      `json:"error,omitempty"` // for the caller of Run to fill in
}

// States in which a migration of the demo should end.
const (
	succeeded = "succeeded"
	aborted   = "aborted"
)

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

	want  string // the state in which it should have ended
	cause string
}

// verdict is an error that names everything that should not have happened.
func (r Report) verdict() error {
	var faults []fleet.FieldError
	for i, m := range r.Migrations {
		for _, problem := range m.problems() {
			faults = append(faults, fleet.FieldError{Path: fmt.Sprintf("migration %d, %s → %s", i+1, m.Source, m.Target), Problem: problem})
		}
	}
	if len(faults) == 0 {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Failed, Op: "demo", Cause: "not everything went as it should", Fields: faults,
		Hint: "run it again with --keep to look into it: it says where the logs are",
	}
}

func (m Migration) problems() (found []string) {
	add := func(is bool, problem string, arguments ...any) {
		if is {
			found = append(found, fmt.Sprintf(problem, arguments...))
		}
	}
	ended := m.State
	if m.cause != "" {
		ended += ": " + m.cause
	}
	add(m.State != m.want, "should have %s, but ended %s", m.want, ended)
	add(m.Client.UDPLost > 0, "the client lost %d of %d UDP packets", m.Client.UDPLost, m.Client.UDPSent)
	add(m.Client.UDPDuplicated > 0, "the client got %d UDP packets twice", m.Client.UDPDuplicated)
	add(m.Client.TCPBroken, "the client's TCP stream broke")
	return found
}

func describe(m *godwitv1.Migration, client Client) Migration {
	outcome := m.GetOutcome()
	one := Migration{
		State: m.GetState(), Source: m.GetSource(), Target: m.GetTarget(),
		TotalMs: outcome.GetTotalMs(), Passes: outcome.GetPasses(), Bytes: outcome.GetBytes(),
		BlackoutMs: outcome.GetBlackoutMs(), OwnMs: outcome.GetOwnMs(),
		BlackoutPhasesMs: map[string]float64{}, Client: client, cause: m.GetCause(),
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
