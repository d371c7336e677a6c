package sim

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/migration"
)

// fewSeeds keeps the tests short; godwit sim runs thousands.
const fewSeeds = 10

func TestNoViolation(t *testing.T) {
	t.Parallel()
	got := Many(t.Context(), Plan{First: 1, Seeds: fewSeeds})
	for _, failed := range got.Failed {
		t.Errorf("seed %d: %d violations, the first: %s", failed.Seed, len(failed.Violations), failed.Violations[0])
	}
	if got.Final[migration.Succeeded] == 0 || got.Final[migration.Aborted] == 0 {
		t.Errorf("the seeds show too little: final states %v", got.Final)
	}
	for _, fault := range Faults() {
		if got.Faults[fault] == 0 {
			t.Errorf("no seed has the fault %q", fault)
		}
	}
	t.Logf("%d migrations in %.1f hours: %v; %d packets, %d operations on owners",
		got.Migrations, got.Hours, got.Final, got.Packets, got.Operations)
}

func TestSeedsReplayExactly(t *testing.T) {
	t.Parallel()
	for seed := range uint64(2) {
		var first, again bytes.Buffer
		a := Run(seed, Options{Harm: 30 * time.Second}, &first)
		b := Run(seed, Options{Harm: 30 * time.Second}, &again)
		if a.Digest != b.Digest || !bytes.Equal(first.Bytes(), again.Bytes()) {
			t.Errorf("seed %d: two runs are not the same", seed)
		}
		if quiet := Run(seed, Options{Harm: 30 * time.Second}, nil); quiet.Digest != a.Digest {
			t.Errorf("seed %d: it runs otherwise without a trace", seed)
		}
	}
}

func TestWorkersDoNotMatter(t *testing.T) {
	t.Parallel()
	plan := Plan{First: 100, Seeds: 4, Workers: 1, Options: Options{Harm: 30 * time.Second}}
	one := Many(t.Context(), plan)
	plan.Workers = 4
	if four := Many(t.Context(), plan); four.Digest != one.Digest || four.Migrations != one.Migrations {
		t.Errorf("four workers: digest %d, %d migrations; one: %d, %d", four.Digest, four.Migrations, one.Digest, one.Migrations)
	}
}

// rarelyShow: these need up to hundreds of seeds, which godwit sim --check-bugs
// runs.
var rarelyShow = []Bug{Unconditional, Unforgiving, Impatient, Unwritten, Unasked}

// Every other bug that is put in is found soon.
func TestBugsAreFound(t *testing.T) {
	for _, bug := range Bugs() {
		if slices.Contains(rarelyShow, bug.Bug) {
			continue
		}
		t.Run(string(bug.Bug), func(t *testing.T) {
			t.Parallel()
			got := FindBug(t.Context(), bug.Bug, 100)
			if len(got.Failed) == 0 {
				t.Fatalf("%s: not found in %d seeds", bug.What, got.Seeds)
			}
			t.Logf("after %d seeds: %s", got.Seeds, got.Failed[0].Violations[0])
		})
	}
}
