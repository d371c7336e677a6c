package agent

import (
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Disks that share a bandwidth are each slower by as much.
func TestPatienceOfDisks(t *testing.T) {
	for _, test := range []struct {
		limit fleet.BytesPerSecond
		disks int
		want  time.Duration
	}{
		{0, 4, stalledAfter},
		{4 << 20, 1, stalledAfter + 4*time.Second},
		{4 << 20, 4, stalledAfter + 16*time.Second},
	} {
		if got := (&mirrors{limit: test.limit}).patience(test.disks); got != test.want {
			t.Errorf("%d disks at %v: %v, want %v", test.disks, test.limit, got, test.want)
		}
	}
}
