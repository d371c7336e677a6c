package explore

import (
	"strings"
	"testing"
)

func TestNoViolation(t *testing.T) {
	for _, auto := range []bool{false, true} {
		got := Explore(Options{Faults: 1, Lost: true, AutoResume: auto, StatesMax: 3_000_000})
		t.Logf("auto-resume %v: %d states, %d at rest", auto, got.States, got.Rest)
		if got.Violation != "" {
			t.Errorf("auto-resume %v: %s\n  %s", auto, got.Violation, strings.Join(got.Trace, "\n  "))
		}
	}
}

// Every guard that is taken out is missed.
func TestMutantsAreCaught(t *testing.T) {
	for _, mutant := range Mutants() {
		t.Run(mutant.Name, func(t *testing.T) {
			t.Parallel()
			mutant.Options.StatesMax = 500_000
			got := Explore(mutant.Options)
			if got.Violation == "" || got.Trace == nil {
				t.Errorf("nothing is found in %d states; %s", got.States, got.Violation)
			}
			if mutant.Options.Faults == 1 { // the fewest, as the list says
				mutant.Options.Faults = 0
				if fewer := Explore(mutant.Options); fewer.Violation != "" {
					t.Errorf("without a fault: %s", fewer.Violation)
				}
			}
			t.Logf("after %d states and %d steps: %s", got.States, len(got.Trace), got.Violation)
		})
	}
}
