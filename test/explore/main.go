// Explore walks through every state that a migration can come to with a number
// of faults, and through the mutants of the core that it must catch. It prints
// what it found, and which guards of the core have no mutant, writes it to out/explore.json, and fails if anything is not as
// it must be.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"godwit.dev/godwit/internal/explore"
)

// found is one search, as out/explore.json has it.
type found struct {
	Name      string   `json:"name"`
	Faults    int      `json:"faults"`
	Mutant    bool     `json:"mutant"`
	States    int      `json:"states"`
	AtRest    int      `json:"at_rest"`
	Seconds   float64  `json:"seconds"`
	Violation string   `json:"violation"`
	Trace     []string `json:"trace,omitempty"`
}

func main() {
	faults := flag.Int("faults", 2, "faults in one migration, at most")
	out := flag.String("out", "out", "folder for explore.json")
	flag.Parse()
	if err := run(*faults, *out); err != nil {
		fmt.Fprintln(os.Stderr, "explore:", err)
		os.Exit(1)
	}
}

func run(faults int, out string) error {
	var all []found
	bad := 0
	look := func(name string, mutant bool, o explore.Options) {
		fmt.Printf("%-62s ", name)
		began := time.Now()
		got := explore.Explore(o)
		one := found{name, o.Faults, mutant, got.States, got.Rest, time.Since(began).Seconds(), got.Violation, got.Trace}
		all = append(all, one)
		fmt.Printf("%8d states %7.1f s  ", one.States, one.Seconds)
		switch {
		case mutant && got.Violation == "":
			bad++
			fmt.Println("NOT CAUGHT")
		case mutant:
			fmt.Printf("caught after %d steps: %s\n", len(got.Trace), got.Violation)
		case got.Violation == "":
			fmt.Printf("no violation; %d at rest\n", got.Rest)
		default:
			bad++
			fmt.Println("VIOLATION:", got.Violation)
			for _, step := range got.Trace {
				fmt.Println("   ", step)
			}
		}
	}
	for n := range faults + 1 {
		look(fmt.Sprintf("at most %d faults, a source stopped by its agent", n), false, explore.Options{Faults: n})
		look(fmt.Sprintf("at most %d faults, a source that QEMU stopped", n), false, explore.Options{Faults: n, AutoResume: true})
	}
	for _, mutant := range explore.Mutants() {
		look("mutant: "+mutant.Name, true, mutant.Options)
	}
	for _, flaw := range explore.KnownFlaws() {
		look("known flaw: "+flaw.Name, true, flaw.Options)
	}
	for _, guard := range explore.UnmissedGuards() {
		fmt.Printf("no mutant: %s: %s\n", guard.Guard, guard.Why)
	}
	text, err := json.MarshalIndent(map[string]any{"searches": all}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "explore.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("%d searches did not end as they must", bad)
	}
	return nil
}
