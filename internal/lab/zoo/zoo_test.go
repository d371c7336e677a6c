package zoo

import (
	"slices"
	"testing"

	"godwit.dev/godwit/internal/lab/witness"
)

// megabytes25 is a link of 200 Mbit/s, in bytes/s.
const megabytes25 = 25_000_000

func TestAll(t *testing.T) {
	seen := make(map[string]bool)
	for _, w := range All(megabytes25) {
		if err := w.Load.Valid(); err != nil || seen[w.Name] {
			t.Errorf("%s: there before: %v, %v", w.Name, seen[w.Name], err)
		}
		seen[w.Name] = true
		if set := w.Load.Set() >> 20; set > w.MemoryMiB/2 {
			t.Errorf("%s: a set of %d MiB leaves too little of %d", w.Name, set, w.MemoryMiB)
		}
		if programs := w.Load.Kind != witness.Memory; programs != w.Debian {
			t.Errorf("%s: of Debian: %v", w.Name, w.Debian)
		}
	}
}

func TestPublishedHardGuests(t *testing.T) {
	sweep := func(rate int64, set int) witness.Load {
		return witness.Load{BytesPerSecond: rate, SetMiB: set, Pattern: witness.Sequential}
	}
	bursts := sweep(75_000_000, 96)
	bursts.On, bursts.Off = BurstOn, BurstOff
	for name, want := range map[string]witness.Load{
		"sweep-32-at-0.3": sweep(7_500_000, 32), "sweep-96-at-0.3": sweep(7_500_000, 96),
		"sweep-32-at-0.8": sweep(20_000_000, 32), "sweep-96-at-0.8": sweep(20_000_000, 96),
		"sweep-32-at-1.5": sweep(37_500_000, 32), "sweep-96-at-1.5": sweep(37_500_000, 96),
		"sweep-32-at-3": sweep(75_000_000, 32), "sweep-96-at-3": sweep(75_000_000, 96),
		"bursts-96": bursts,
	} {
		all := All(megabytes25)
		i := slices.IndexFunc(all, func(w Workload) bool { return w.Name == name })
		if i < 0 || all[i].Load != want || all[i].MemoryMiB != 256 || all[i].Debian {
			t.Errorf("%s is not %+v", name, want)
		}
	}
}
