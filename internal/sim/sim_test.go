package sim

import (
	"bytes"
	"slices"
	"strings"
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
	for _, way := range []Way{Waited, HostGone} {
		if got.Ways[way] == 0 {
			t.Errorf("no migration went the way %q", way)
		}
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

// shownBy is what each bug has to be found by.
var shownBy = map[Bug]string{
	Unconditional: "after the last fault",
	Unfettered:    "only the lock on the image",
	Unforgiving:   "only the lock on the image",
	OpenGate:      "it was in the tap",
	Unasked:       "only the lock on the image",
	Impatient:     "only the lock on the image",
	Unwritten:     "only the lock on the image",
	Keeping:       "it was in the tap",
	Hasty:         "no tap on",
	Careless:      "was acknowledged",
	Killjoy:       "was the last of its VM, and its agent ended it",
	Untold:        "after the last fault",
	Unwaiting:     "only the lock on the image",
	Unsparing:     "was the last of its VM, and its agent ended it",
	Tidying:       "no tap on",
}

// Every bug that is put in is found soon, and for what it does.
func TestBugsAreFound(t *testing.T) {
	for _, bug := range Bugs() {
		t.Run(string(bug.Bug), func(t *testing.T) {
			t.Parallel()
			want, known := shownBy[bug.Bug]
			if !known {
				t.Fatal("nothing says what has to show it")
			}
			for seed := range uint64(300) {
				got := Run(seed, Options{Bug: bug.Bug}, nil)
				if slices.ContainsFunc(got.Violations, func(one string) bool { return strings.Contains(one, want) }) {
					t.Logf("seed %d", seed)
					return
				}
			}
			t.Errorf("%s: no seed shows %q", bug.What, want)
		})
	}
}
