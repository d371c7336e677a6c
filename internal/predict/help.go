package predict

import "fmt"

// Throttle is how a guest is slowed so that its migration ends: QEMU's auto-converge
// (docs/devel/migration of QEMU), which takes a share of the time of its vCPUs. The zero
// value takes none. All are percents.
type Throttle struct {
	Initial int    `json:"initial"` // taken first
	Step    int    `json:"step"`    // and so much more, while that is not enough
	Max     int    `json:"max"`     // what the policy allows
	Why     string `json:"why,omitempty"`
}

const (
	// MaxThrottle is the most that can be taken (QEMU's own bound).
	MaxThrottle = 99
	// throttleStep is between the throttles that are tried.
	throttleStep = 10
	// helped is the probability of ending that is good enough.
	helped = 0.9
)

// Help gives the least throttle up to a limit with which the migration is expected to end,
// and the forecast with it. Without a forecast that fails, or if none is allowed, there is
// no throttle, and the forecast is that without. Where none is enough it is the most.
func Help(in Inputs, most int) (Throttle, Forecast, error) {
	alone, err := Make(in)
	most = min(most, MaxThrottle)
	if err != nil || most <= 0 || !alone.Known || alone.Probability >= helped {
		return Throttle{}, alone, err
	}
	t := Throttle{Step: throttleStep, Max: most}
	f := alone
	for t.Initial < most && f.Probability < helped {
		t.Initial = min(t.Initial+throttleStep, most)
		in.Throttle = float64(t.Initial) / 100
		if f, err = Make(in); err != nil {
			return Throttle{}, alone, err
		}
	}
	t.Why = fmt.Sprintf("without help it ends with %.0f %%: %s; with %d %% of its time taken from the guest, %.0f %%",
		100*alone.Probability, alone.Reason, t.Initial, 100*f.Probability)
	return t, f, nil
}
