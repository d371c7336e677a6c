package cli

import (
	"testing"
	"time"
)

// FuzzSince reads since when something is asked for: what is said as an age is
// never in the future.
func FuzzSince(f *testing.F) {
	for _, seed := range []string{"24h", "-1h", "2026-11-01", "2026-11-01T03:00:00Z", "2562047h47m16.854775807s", "0", "", "2026-02-30"} {
		f.Add(seed)
	}
	now := time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		at, err := parseSince(text, now)
		if err != nil {
			if !at.IsZero() {
				t.Errorf("%q is no time, and %v", text, at)
			}
			return
		}
		if _, isAge := time.ParseDuration(text); isAge == nil && at.After(now) {
			t.Errorf("%q is %v", text, at)
		}
	})
}
