package migration

import (
	"fmt"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

// Policy says how long each part may take and what the copy may use.
type Policy struct {
	PrepareMax   time.Duration        `json:"prepareMax"`
	CopyMax      time.Duration        `json:"copyMax"`
	SwitchMax    time.Duration        `json:"switchMax"`
	SettleMax    time.Duration        `json:"settleMax"`
	RollbackMax  time.Duration        `json:"rollbackMax"`
	Grace        time.Duration        `json:"grace"`        // forwarding goes on so long after all know
	BandwidthMax fleet.BytesPerSecond `json:"bandwidthMax"` // zero: no limit
	BlackoutMax  time.Duration        `json:"blackoutMax"`
	Prediction   Prediction           `json:"prediction,omitzero"`
	ThrottleMax  int                  `json:"throttleMax,omitempty"` // percent of its time that may be taken from the guest
	From         PresetName           `json:"from,omitempty"`        // what was not asked; "" is the default
	Asked        []PolicyName         `json:"asked"`                 // what the request set; nil: it was not kept
}

// Prediction says what follows from a predicted failure. The zero value is of records
// of before there were forecasts, and nothing follows.
type Prediction struct {
	OnFailure predict.Action    `json:"onFailure"`
	Threshold predict.Threshold `json:"threshold"`
	// Forced: the request goes on whatever is predicted.
	Forced bool `json:"forced,omitempty"`
}

// String says what follows; "" of a record of before.
func (p Prediction) String() string {
	switch {
	case p.Forced:
		return "go on, forced"
	case p.OnFailure == predict.Cancel:
		return fmt.Sprintf("cancel, below %.0f %% in %d evaluations", 100*p.Threshold.Probability, p.Threshold.Evaluations)
	case p.OnFailure == predict.GoOn:
		return "go on"
	}
	return ""
}

// DefaultPolicy gives the limits for a VM of which that much is copied: memory and
// local disks. The copy's grows with it: 150 seconds for each GiB, but at least five
// minutes.
func DefaultPolicy(copied fleet.Bytes) Policy {
	perGiB := time.Duration(float64(copied) / float64(fleet.GiB) * float64(150*time.Second))
	return Policy{
		PrepareMax:  time.Minute,
		CopyMax:     max(5*time.Minute, perGiB),
		SwitchMax:   3 * time.Second,
		SettleMax:   time.Minute,
		RollbackMax: 30 * time.Second,
		Grace:       time.Second,
		BlackoutMax: 300 * time.Millisecond,
		Prediction:  Prediction{OnFailure: predict.Cancel, Threshold: predict.DefaultThreshold()},
		Asked:       []PolicyName{},
	}
}

// Validate reports the first limit that makes no sense, as an Invalid error.
func (p Policy) Validate() error {
	limits := []struct {
		name  string
		value time.Duration
	}{
		{"the time to prepare", p.PrepareMax}, {"the time to copy", p.CopyMax},
		{"the time to switch", p.SwitchMax}, {"the time to settle", p.SettleMax},
		{"the time to roll back", p.RollbackMax}, {"the blackout", p.BlackoutMax},
	}
	for _, limit := range limits {
		if limit.value <= 0 {
			return invalidPolicy(fmt.Sprintf("%s must be limited to more than zero", limit.name))
		}
	}
	switch {
	case p.Grace < 0:
		return invalidPolicy("the grace time can't be negative")
	case p.ThrottleMax < 0 || p.ThrottleMax > predict.MaxThrottle:
		return invalidPolicy(fmt.Sprintf("from 0 to %d %% of its time can be taken from a guest, not %d %%", predict.MaxThrottle, p.ThrottleMax))
	case p.BandwidthMax < 0:
		return invalidPolicy("the bandwidth can't be negative")
	case !slices.Contains(predict.Actions(), p.Prediction.OnFailure):
		return invalidPolicy(fmt.Sprintf("%q is nothing that a predicted failure can lead to: cancel or go-on", p.Prediction.OnFailure))
	case p.Prediction.Threshold.Evaluations < 1 || !(p.Prediction.Threshold.Probability >= 0 && p.Prediction.Threshold.Probability <= 1):
		return invalidPolicy("a failure is predicted by a probability from 0 to 1, in one evaluation or more")
	case p.BlackoutMax > p.SwitchMax:
		return invalidPolicy(fmt.Sprintf("a blackout of %v can't be allowed when the switch must end within %v", p.BlackoutMax, p.SwitchMax))
	}
	return nil
}

func invalidPolicy(cause string) error {
	return &fleet.Error{Code: fleet.Invalid, Op: "check policy", Cause: cause}
}

// PolicyName names one value of a Policy. The names are stored and shown.
type PolicyName string

// The values of a policy.
const (
	PolicyBandwidth PolicyName = "bandwidth"
	PolicyBlackout  PolicyName = "blackout"
	PolicyPrepare   PolicyName = "prepare"
	PolicyCopy      PolicyName = "copy"
	PolicySwitch    PolicyName = "switch"
	PolicySettle    PolicyName = "settle"
	PolicyGrace     PolicyName = "grace"
	PolicyRollback  PolicyName = "roll-back"
	// PolicyPrediction is what follows from a predicted failure.
	PolicyPrediction PolicyName = "on-predicted-failure"
	PolicyThrottle   PolicyName = "throttle"
)

// PolicyValue is one value of a policy, and where it came from.
type PolicyValue struct {
	Name PolicyName
	Time time.Duration        // of all but the bandwidth
	Rate fleet.BytesPerSecond // of the bandwidth; zero: no limit
	Text string               // of the throttle, and of what follows from a predicted failure
	From string               // "the request", or a default; "" in records of before it was kept
}

// Values lists what the policy holds a migration to, with the origin of each.
func (p Policy) Values() []PolicyValue {
	const fixed = "default"
	list := []PolicyValue{
		{Name: PolicyBandwidth, Rate: p.BandwidthMax, From: fixed},
		{Name: PolicyBlackout, Time: p.BlackoutMax, From: fixed},
		{Name: PolicyPrepare, Time: p.PrepareMax, From: fixed},
		{Name: PolicyCopy, Time: p.CopyMax, From: "default: 150 s for each GiB of memory and local disks, but at least 5 min"},
		{Name: PolicySwitch, Time: p.SwitchMax, From: fixed},
		{Name: PolicySettle, Time: p.SettleMax, From: fixed},
		{Name: PolicyGrace, Time: p.Grace, From: fixed},
		{Name: PolicyRollback, Time: p.RollbackMax, From: fixed},
	}
	throttle := "never"
	if p.ThrottleMax > 0 {
		throttle = fmt.Sprintf("up to %d %%, if it does not end otherwise", p.ThrottleMax)
	}
	list = append(list, PolicyValue{Name: PolicyThrottle, Text: throttle, From: fixed})
	if text := p.Prediction.String(); text != "" {
		list = append(list, PolicyValue{Name: PolicyPrediction, Text: text, From: fixed})
	}
	for i, value := range list {
		switch {
		case p.Asked == nil:
			list[i].From = ""
		case slices.Contains(p.Asked, value.Name):
			list[i].From = "the request"
		case p.From != "" && slices.Contains(presetValues, value.Name):
			list[i].From = "policy " + string(p.From)
		}
	}
	return list
}
