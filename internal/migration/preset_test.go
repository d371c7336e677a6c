package migration

import (
	"slices"
	"testing"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

func TestPresets(t *testing.T) {
	for _, preset := range Presets() {
		policy, err := DefaultPolicy(fleet.GiB).Preset(preset.Name)
		if err != nil || policy.Validate() != nil || policy.BlackoutMax != preset.BlackoutMax {
			t.Errorf("%s: %+v, %v, %v", preset.Name, policy, err, policy.Validate())
		}
		for _, value := range policy.Values() {
			want := "default"
			if slices.Contains(presetValues, value.Name) {
				want = "policy " + string(preset.Name)
			}
			if value.Name != PolicyCopy && value.From != want {
				t.Errorf("%s: %s is from %q, want %q", preset.Name, value.Name, value.From, want)
			}
		}
	}
	usual, balanced := DefaultPolicy(0), DefaultPolicy(0)
	if balanced, err := balanced.Preset(Balanced); err != nil || balanced.BlackoutMax != usual.BlackoutMax ||
		balanced.Prediction != usual.Prediction || balanced.ThrottleMax != usual.ThrottleMax {
		t.Errorf("the default is not %s: %+v", Balanced, balanced)
	}
	if _, err := usual.Preset("rude"); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("one that there is not: %v", err)
	}
}

func TestAbsurdPolicies(t *testing.T) {
	for name, spoil := range map[string]func(*Policy){
		"an action of no sense":  func(p *Policy) { p.Prediction.OnFailure = "shrug" },
		"a throttle of all":      func(p *Policy) { p.ThrottleMax = 100 },
		"a throttle below none":  func(p *Policy) { p.ThrottleMax = -1 },
		"no evaluations":         func(p *Policy) { p.Prediction.Threshold.Evaluations = 0 },
		"a probability above 1":  func(p *Policy) { p.Prediction.Threshold.Probability = 1.5 },
		"no action":              func(p *Policy) { p.Prediction = Prediction{Threshold: predict.DefaultThreshold()} },
		"a blackout of no time":  func(p *Policy) { p.BlackoutMax = 0 },
		"more than a switch has": func(p *Policy) { p.BlackoutMax = p.SwitchMax + 1 },
	} {
		policy := DefaultPolicy(fleet.GiB)
		spoil(&policy)
		if err := policy.Validate(); fleet.CodeOf(err) != fleet.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
