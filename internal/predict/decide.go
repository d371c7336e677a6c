package predict

import "fmt"

// Action is what a predicted failure leads to. It crosses the wire and is stored.
type Action string

// The actions.
const (
	Cancel Action = "cancel" // stop the target's instance; the VM runs on where it is
	GoOn   Action = "go-on"  // until a limit of the policy ends it
)

// Actions lists them.
func Actions() []Action { return []Action{Cancel, GoOn} }

// Threshold says when a failure is predicted.
type Threshold struct {
	// Probability of ending below which an evaluation counts as one of failure.
	Probability float64 `json:"probability"`
	// Evaluations in a row that it takes: a single low one may be chance.
	Evaluations int `json:"evaluations"`
}

// DefaultThreshold is that of a policy that names none.
func DefaultThreshold() Threshold { return Threshold{Probability: 0.1, Evaluations: 2} }

// Met reports whether the newest forecasts, which are the last, predict a failure.
func (t Threshold) Met(forecasts []Forecast) bool {
	if t.Evaluations < 1 || len(forecasts) < t.Evaluations {
		return false
	}
	for _, f := range forecasts[len(forecasts)-t.Evaluations:] {
		if !t.Low(f) {
			return false
		}
	}
	return true
}

// Low reports whether one forecast is below the threshold.
func (t Threshold) Low(f Forecast) bool { return f.Known && f.Probability < t.Probability }

// Cause says why a migration is cancelled of which the forecast is the last.
func (t Threshold) Cause(f Forecast) string {
	return fmt.Sprintf("it is predicted to fail: it ends within its policy with a probability of %.0f %%, less than %.0f %% in %d evaluations: %s",
		100*f.Probability, 100*t.Probability, t.Evaluations, f.Reason)
}
