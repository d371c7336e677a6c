package agent

import (
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/qemu"
)

func TestConverged(t *testing.T) {
	const gigabyte = fleet.BytesPerSecond(1e9) // a megabyte takes a millisecond
	for name, test := range map[string]struct {
		remaining, before fleet.Bytes
		bandwidth         fleet.BytesPerSecond
		blackoutMax       time.Duration
		want              migration.StopRule
	}{
		"nothing is left":                       {remaining: 0, before: 1e6, bandwidth: gigabyte, want: migration.LittleLeft},
		"hardly anything is left":               {remaining: 500e3, before: 1e9, bandwidth: gigabyte, want: migration.LittleLeft},
		"little is left, and it shrinks":        {remaining: 600e3, before: 1e9, bandwidth: gigabyte, blackoutMax: time.Second},
		"it shrinks by just enough":             {remaining: 69e6, before: 100e6, bandwidth: gigabyte, blackoutMax: time.Second},
		"it does not shrink enough, and fits":   {remaining: 70e6, before: 100e6, bandwidth: gigabyte, blackoutMax: time.Second, want: migration.NoGain},
		"it grows, and fits":                    {remaining: 200e6, before: 100e6, bandwidth: gigabyte, blackoutMax: time.Second, want: migration.NoGain},
		"it just fits":                          {remaining: 100e6, before: 100e6, bandwidth: gigabyte, blackoutMax: 100 * time.Millisecond, want: migration.NoGain},
		"it does not shrink, and does not fit":  {remaining: 101e6, before: 100e6, bandwidth: gigabyte, blackoutMax: 100 * time.Millisecond},
		"no blackout is allowed":                {remaining: 1e6, before: 1e6, bandwidth: gigabyte},
		"the first look":                        {remaining: 1e6, before: 0, bandwidth: gigabyte, blackoutMax: time.Second},
		"the bandwidth is not known":            {remaining: 0, before: 1e6, blackoutMax: time.Hour},
		"a slow link makes little take long":    {remaining: 4096, before: 1e6, bandwidth: 1e6, blackoutMax: time.Second},
		"a slow link, and it no longer shrinks": {remaining: 4096, before: 4096, bandwidth: 1e6, blackoutMax: time.Second, want: migration.NoGain},
	} {
		h := &handover{
			left: test.before, blackoutMax: test.blackoutMax,
			progress: qemu.Progress{Remaining: test.remaining, Bandwidth: test.bandwidth},
		}
		if got := h.converged().GetRule(); got != string(test.want) {
			t.Errorf("%s: converged by %q", name, got)
		}
	}
}

func TestSoonThrough(t *testing.T) {
	const slow = fleet.BytesPerSecond(1e6) // 50 ms are 50 kB
	for name, test := range map[string]struct {
		remaining, before fleet.Bytes
		bandwidth         fleet.BytesPerSecond
		want              bool
	}{
		"much is left":               {remaining: 51e3, before: 52e3, bandwidth: slow},
		"little is left":             {remaining: 50e3, before: 52e3, bandwidth: slow, want: true},
		"empty pages, and many":      {remaining: 13e6, before: 16e6, bandwidth: slow},
		"empty pages, and few":       {remaining: 12e6, before: 15e6, bandwidth: slow, want: true},
		"the first look, much":       {remaining: 51e3, bandwidth: slow},
		"the first look, and little": {remaining: 50e3, bandwidth: slow, want: true},
		"the bandwidth is not known": {remaining: 1e3, before: 1e9},
		"the last page":              {remaining: 4096, before: 4096, bandwidth: slow, want: true},
	} {
		h := &handover{progress: qemu.Progress{Remaining: test.remaining, Bandwidth: test.bandwidth}}
		if got := h.soonThrough(test.before, lookEvery) != nil; got != test.want {
			t.Errorf("%s: soon through is %v", name, got)
		}
	}
}

// TestPassWhileTheGuestRuns: an emulator that can't be trusted with more than
// one pass has begun a second one, and the guest is not known to have stopped.
// Whether somebody is about to stop it makes no difference.
func TestPassWhileTheGuestRuns(t *testing.T) {
	for _, stopper := range []string{"", "agent"} {
		h := &handover{machine: &machine{}, can: qemu.Abilities{OnePass: true}, stopper: stopper}
		_, err := h.take(t.Context(), qemu.Event{Kind: qemu.PassBegun, Pass: 2})
		if fleet.CodeOf(err) != fleet.Unsupported {
			t.Errorf("stopped by %q: %v", stopper, err)
		}
	}
}
