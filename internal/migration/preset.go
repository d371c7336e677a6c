package migration

import (
	"fmt"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

// PresetName names a policy for those who don't want to choose. It is stored and shown.
type PresetName string

// The presets.
const (
	Gentle    PresetName = "gentle"
	Balanced  PresetName = "balanced" // the default
	Insistent PresetName = "insistent"
)

// Preset is what it sets in the default policy.
type Preset struct {
	Name        PresetName
	About       string // in a few words
	BlackoutMax time.Duration
	ThrottleMax int
	OnFailure   predict.Action
}

// Presets lists them, the gentlest first.
func Presets() []Preset {
	return []Preset{
		{Gentle, "short pauses, no guest is slowed, what would fail is cancelled", 100 * time.Millisecond, 0, predict.Cancel},
		{Balanced, "the default: no guest is slowed, what would fail is cancelled", 300 * time.Millisecond, 0, predict.Cancel},
		{Insistent, "longer pauses, the guest may be slowed, nothing is cancelled", time.Second, 90, predict.GoOn},
	}
}

// presetValues are those of a policy that a preset sets.
var presetValues = []PolicyName{PolicyBlackout, PolicyThrottle, PolicyPrediction}

// Preset gives the policy with what a preset sets; "" changes nothing. Invalid for a name
// that is none.
func (p Policy) Preset(name PresetName) (Policy, error) {
	if name == "" {
		return p, nil
	}
	var names []string
	for _, preset := range Presets() {
		if preset.Name == name {
			p.From, p.BlackoutMax, p.ThrottleMax, p.Prediction.OnFailure = name, preset.BlackoutMax, preset.ThrottleMax, preset.OnFailure
			return p, nil
		}
		names = append(names, string(preset.Name))
	}
	return p, &fleet.Error{
		Code: fleet.Invalid, Op: "check policy", Cause: fmt.Sprintf("there is no policy %q, only %s", name, strings.Join(names, ", ")),
	}
}
