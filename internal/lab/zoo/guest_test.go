package zoo

import (
	"context"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/witness"
	"godwit.dev/godwit/internal/qmp"
)

// noise is how many pages a guest without a load changes in three seconds, at most.
const noise = 6 * pagesPerMiB

// TestGuest gives every kind of load to one guest, and looks from outside at what it does
// to the guest's memory.
func TestGuest(t *testing.T) {
	img, err := image.Locate()
	if err != nil {
		t.Fatal(err)
	}
	m := boot(t, img, memoryMiB, witness.Load{SetMiB: 128, ZeroPercent: 100})
	t.Run("idle", func(t *testing.T) {
		m.check(t, witness.Load{})
		m.checkZeros(t)
	})
	for name, l := range map[string]witness.Load{
		"steady":       {BytesPerSecond: 12 * mib, SetMiB: 32},
		"sweep":        {BytesPerSecond: 24 * mib, SetMiB: 8, Pattern: witness.Sequential},
		"hot":          {BytesPerSecond: 24 * mib, SetMiB: 64, Pattern: witness.Hot},
		"zipf":         {BytesPerSecond: 24 * mib, SetMiB: 64, Pattern: witness.Zipf, Exponent: 1.3},
		"compressible": {BytesPerSecond: 12 * mib, SetMiB: 64, ZeroPercent: 50},
	} {
		t.Run(name, func(t *testing.T) {
			m.give(t, l)
			if did := m.check(t, l); did.zeroed > noise {
				t.Errorf("%d pages became zeros", did.zeroed)
			}
		})
	}
	t.Run("zeros", m.testZeros)
	t.Run("bursts", m.testBursts)
	t.Run("phases", m.testPhases)
	t.Run("unthrottled", m.testUnthrottled)
	t.Run("refused", m.testRefused)
}

// check sees that the guest does its load's work at its rate, or at less if the machine
// is busy, and that as many pages change as that makes.
func (m *machine) check(t *testing.T, l witness.Load) measured {
	t.Helper()
	did := m.measure(t)
	rate, least, most := float64(l.BytesPerSecond)/witness.PageSize, different(l, did.least), different(l, did.most)
	t.Logf("%.0f units/s of %.0f; of %d to %d pages to be changed %d were, %d of them to zeros", did.perS, rate, least, most, did.changed, did.zeroed)
	if did.perS < 0.5*rate || did.perS > 1.1*rate {
		t.Errorf("%.0f units/s were done, want %.0f", did.perS, rate)
	}
	if did.changed < least*95/100 || did.changed > most*105/100+noise {
		t.Errorf("%d pages were changed, want %d to %d", did.changed, least, most)
	}
	return did
}

// testZeros has a set overwritten by zeros.
func (m *machine) testZeros(t *testing.T) {
	l := witness.Load{BytesPerSecond: witness.Unthrottled, SetMiB: 128, Pattern: witness.Sequential}
	m.give(t, l)
	for begun := m.status(t).Load.Work; m.status(t).Load.Work-begun < 128*pagesPerMiB; {
		m.report(t)
	}
	l.BytesPerSecond, l.ZeroPercent = 24*mib, 100
	m.give(t, l)
	if did := m.check(t, l); did.zeroed < did.least*95/100 {
		t.Errorf("of %d pages written %d became zeros", did.least, did.zeroed)
	}
}

// checkZeros sends all of the guest's memory, most of which is written with zeros.
func (m *machine) checkZeros(t *testing.T) {
	ctx := t.Context()
	migration := m.monitor.Subscribe(16, qmp.EventMigration)
	defer migration.Close()
	on := []qmp.MigrationCapabilityStatus{{Capability: "events", State: true}}
	if err := qmp.MigrateSetCapabilities(ctx, m.monitor, qmp.MigrateSetCapabilitiesArgs{Capabilities: on}); err != nil {
		t.Fatal(err)
	}
	if err := qmp.Migrate(ctx, m.monitor, qmp.MigrateArgs{URI: new("exec:cat >/dev/null")}); err != nil {
		t.Fatal(err)
	}
	for range migration.Events() {
		status, err := qmp.QueryMigrate(ctx, m.monitor)
		if err != nil {
			t.Fatal(err)
		}
		if status.Status == qmp.MigrationStatusFailed {
			t.Fatalf("%+v", status)
		}
		if status.Status != qmp.MigrationStatusCompleted {
			continue
		}
		t.Logf("%d MiB sent, %d pages of zeros", status.RAM.NormalBytes/mib, status.RAM.Duplicate)
		if sent := status.RAM.NormalBytes / mib; sent > memoryMiB-128 {
			t.Errorf("%d MiB were sent of %d, with a set of 128 that is zeros", sent, memoryMiB)
		}
		m.goOn(t)
		return
	}
	t.Fatal(migration.Err())
}

// goOn lets the guest run on after a migration. QEMU says that it has completed a moment
// before it lets go of the guest, by no event, and stops one that runs on before that.
func (m *machine) goOn(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		status, err := qmp.QueryStatus(ctx, m.monitor)
		if err != nil {
			t.Fatal(err)
		}
		if status.Status == qmp.RunStatePostmigrate {
			break
		}
		<-again.C
	}
	if err := qmp.Cont(ctx, m.monitor); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) testBursts(t *testing.T) {
	const rate, on, off = 24 * mib, 300 * time.Millisecond, 700 * time.Millisecond
	m.give(t, witness.Load{BytesPerSecond: rate, SetMiB: 64, On: on, Off: off})
	before := m.status(t)
	r := m.await(t, before.Clock+int64(4*time.Second))
	passed := time.Duration(r.Clock - before.Clock)
	units := float64(r.Load.Work - before.Load.Work)
	full := rate / witness.PageSize
	t.Logf("%.0f units in %v, %.0f/s of %d", units, passed, units/passed.Seconds(), full)
	least := passed.Seconds() - off.Seconds() // the rest may be short of a burst, or have one more
	most := passed.Seconds() + off.Seconds()
	if duty := on.Seconds() / (on + off).Seconds() * float64(full); units < 0.5*duty*least || units > 1.1*duty*most {
		t.Errorf("%.0f units in %v, want %.0f/s", units, passed, duty)
	}
}

func (m *machine) testPhases(t *testing.T) {
	const change = 1500 * time.Millisecond
	m.give(t, witness.Load{BytesPerSecond: 4 * mib, SetMiB: 32, For: change, Then: &witness.Load{BytesPerSecond: 16 * mib, SetMiB: 64}})
	first := m.status(t)
	if first.Load.Phase != 0 || first.Load.Then == nil {
		t.Errorf("it begins with %+v", first.Load)
	}
	r := m.report(t)
	for r.Load.Phase == 0 {
		r = m.report(t)
	}
	if after := time.Duration(r.Load.PhaseBegun - first.Load.PhaseBegun); r.Load.Phase != 1 || after != change {
		t.Errorf("phase %d came after %v, want %v", r.Load.Phase, after, change)
	}
	m.check(t, *first.Load.Then)
}

func (m *machine) testUnthrottled(t *testing.T) {
	const set = 24
	m.give(t, witness.Load{BytesPerSecond: witness.Unthrottled, SetMiB: set})
	did := m.measure(t)
	t.Logf("%.0f MiB/s, %d pages changed", did.perS/pagesPerMiB, did.changed)
	if did.perS < 2*set*pagesPerMiB || did.changed < set*pagesPerMiB*9/10 || did.changed > set*pagesPerMiB+noise {
		t.Errorf("a set of %d MiB: %.0f pages/s, %d of them different", set, did.perS, did.changed)
	}
}

// testRefused sees that what a guest can't do leaves its load as it was.
func (m *machine) testRefused(t *testing.T) {
	want := witness.Load{BytesPerSecond: 4 * mib, SetMiB: 8}
	m.give(t, want)
	for name, l := range map[string]witness.Load{
		"no memory":  {BytesPerSecond: 4 * mib, SetMiB: memoryMiB},
		"no program": {Kind: witness.Redis, BytesPerSecond: 4 * mib, SetMiB: 8},
		"no tcc":     {Kind: witness.Compile, BytesPerSecond: witness.Unthrottled},
		"invalid":    {BytesPerSecond: -2, SetMiB: 8},
	} {
		if err := m.SetLoad(t.Context(), l); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
	m.check(t, want)
	if got := m.status(t).Load; got.Load != want {
		t.Errorf("the load is %+v, want %+v", got, want)
	}
}
