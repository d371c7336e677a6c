package migration

import (
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

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
)

// PolicyValue is one value of a policy, and where it came from.
type PolicyValue struct {
	Name PolicyName
	Time time.Duration        // of all but the bandwidth
	Rate fleet.BytesPerSecond // of the bandwidth; zero: no limit
	From string               // "the request", or a default; "" in records of before it was kept
}

// Values lists what the policy holds a migration to, with the origin of each.
func (p Policy) Values() []PolicyValue {
	const fixed = "default"
	list := []PolicyValue{
		{Name: PolicyBandwidth, Rate: p.BandwidthMax, From: fixed},
		{Name: PolicyBlackout, Time: p.BlackoutMax, From: fixed},
		{Name: PolicyPrepare, Time: p.PrepareMax, From: fixed},
		{Name: PolicyCopy, Time: p.CopyMax, From: "default: 150 s for each GiB of memory, but at least 5 min"},
		{Name: PolicySwitch, Time: p.SwitchMax, From: fixed},
		{Name: PolicySettle, Time: p.SettleMax, From: fixed},
		{Name: PolicyGrace, Time: p.Grace, From: fixed},
		{Name: PolicyRollback, Time: p.RollbackMax, From: fixed},
	}
	for i, value := range list {
		switch {
		case p.Asked == nil:
			list[i].From = ""
		case slices.Contains(p.Asked, value.Name):
			list[i].From = "the request"
		}
	}
	return list
}
