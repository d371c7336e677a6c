package agent

import (
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/qemu"
)

// On a slow link QEMU's own rate is what the sockets took: by it 30 MiB would go in a
// second, by the pass that has ended in three.
func TestSlowLinkIsBelieved(t *testing.T) {
	h := &handover{blackoutMax: 1500 * time.Millisecond, left: 32 * fleet.MiB}
	begun := time.Unix(100, 0)
	h.progress = qemu.Progress{Transferred: 100 * fleet.MiB, Remaining: 30 * fleet.MiB, Bandwidth: 30 << 20}
	h.notePass(begun)
	if why := h.converged(); why.GetRule() != string(migration.NoGain) {
		t.Fatalf("with one pass begun it is %v", why)
	}
	h.progress.Transferred += 30 * fleet.MiB
	h.notePass(begun.Add(3 * time.Second))
	if why := h.converged(); why != nil {
		t.Errorf("30 MiB at 10 MiB/s do not take 1.5 s: %v", why)
	}
	h.progress.Remaining, h.left = 12*fleet.MiB, 12*fleet.MiB
	if why := h.converged(); why.GetRule() != string(migration.NoGain) || why.GetBandwidthBytesPerSecond() != 10<<20 {
		t.Errorf("12 MiB at 10 MiB/s: %v", why)
	}
	h.notePass(begun.Add(3*time.Second + tellingPass/2))
	if h.passRate != 0 {
		t.Errorf("a short pass tells %v", h.passRate)
	}
}
