package zoo

import (
	"testing"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/witness"
)

// TestDebian has Redis and a compiler work in one guest.
func TestDebian(t *testing.T) {
	cache, err := image.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	img, err := Build(t.Context(), cache, t.TempDir())
	if fleet.CodeOf(err) == fleet.NotFound {
		t.Skipf("the guest's programs are not there; %s", fleet.HintOf(err))
	}
	if err != nil {
		t.Fatal(err)
	}
	m := boot(t, img, debianMiB, witness.Load{})
	for name, l := range map[string]witness.Load{
		"redis":      {Kind: witness.Redis, BytesPerSecond: mib, SetMiB: 32},
		"redis zipf": {Kind: witness.Redis, BytesPerSecond: mib, SetMiB: 32, Pattern: witness.Zipf, Exponent: 1},
	} {
		t.Run(name, func(t *testing.T) {
			m.give(t, l)
			// A value lies over two pages, and its bookkeeping on others.
			rate := float64(l.BytesPerSecond) / witness.PageSize
			did := m.measure(t)
			t.Logf("%.0f values/s of %.0f, %d; %d pages changed", did.perS, rate, did.least, did.changed)
			if did.perS < 0.5*rate || did.perS > 1.1*rate || did.changed < different(l, did.least) {
				t.Errorf("%.0f values/s, want %.0f; %d pages changed", did.perS, rate, did.changed)
			}
		})
	}
	for name, l := range map[string]witness.Load{
		"redis flat out": {Kind: witness.Redis, BytesPerSecond: witness.Unthrottled, SetMiB: 48},
		"compile":        {Kind: witness.Compile, BytesPerSecond: witness.Unthrottled},
	} {
		t.Run(name, func(t *testing.T) {
			m.give(t, l)
			did := m.measure(t)
			t.Logf("%.1f units/s, %d pages changed", did.perS, did.changed)
			if did.most == 0 || did.changed < noise {
				t.Errorf("%d units, %d pages changed", did.most, did.changed)
			}
		})
	}
	if r := m.status(t); r.Load.Pages != 0 {
		t.Errorf("%d pages of its own memory were counted", r.Load.Pages)
	}
}
