package reconcile

import (
	"math"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func TestStopDetail(t *testing.T) {
	why := func(left uint64, rate float64, rule string, limit float64) *godwitv1.StopReason {
		return &godwitv1.StopReason{RemainingBytes: left, BandwidthBytesPerSecond: rate, Rule: rule, LimitMs: limit}
	}
	for name, test := range map[string]struct {
		why  *godwitv1.StopReason
		want string
	}{
		"the passes leave no less": {
			why(3250586, 110<<20, "no-gain", 300),
			"stopped by agent: 3.1MiB left at 110MiB/s, about 28.2 ms, limit 300 ms; another pass would not leave much less",
		},
		"little is left": {
			why(4096, 110<<20, "little-left", 0.5),
			"stopped by agent: 4KiB left at 110MiB/s, about 0.0 ms; below 0.5 ms no further pass is made",
		},
		"the only pass": {
			why(5<<20, 110<<20, "only-pass", 50),
			"stopped by agent: 5MiB left at 110MiB/s, about 45.5 ms; its QEMU must be stopped before the end of the first pass, and is at 50 ms",
		},
		"a rule of a newer agent": {why(0, 1<<20, "by luck", 7), "stopped by agent: 0B left at 1MiB/s, about 0.0 ms"},
		"not told":                {nil, "stopped by agent"},
		"not a number":            {why(1, math.NaN(), "no-gain", 300), "stopped by agent"},
		"a negative rate":         {why(1, -1, "no-gain", 300), "stopped by agent"},
		"it never ends":           {why(1, 1e-300, "no-gain", 300), "stopped by agent"},
		"an infinite rate":        {why(1, math.Inf(1), "no-gain", 300), "stopped by agent"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := stopDetail(&godwitv1.SourceStopped{StoppedBy: "agent", Why: test.why}); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}
