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

// search is one to be made.
type search struct {
	name    string
	mutant  bool
	options explore.Options
	result  chan found
}

func run(faults int, out string) error {
	all := searches(faults)
	go explorer(all)
	var results []found
	bad := 0
	for _, one := range all {
		fmt.Printf("%-76s ", one.name)
		got := <-one.result
		results = append(results, got)
		if !show(got) {
			bad++
		}
	}
	for _, guard := range explore.UnmissedGuards() {
		fmt.Printf("no mutant: %s: %s\n", guard.Guard, guard.Why)
	}
	text, err := json.MarshalIndent(map[string]any{"searches": results}, "", "  ")
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

// searches lists all of them, the core's own first.
func searches(faults int) (all []search) {
	add := func(name string, mutant bool, o explore.Options) {
		all = append(all, search{name, mutant, o, make(chan found, 1)})
	}
	for n := range faults + 1 {
		add(fmt.Sprintf("at most %d faults, a source stopped by its agent", n), false, explore.Options{Faults: n, Lost: true})
		add(fmt.Sprintf("at most %d faults, a source that QEMU stopped", n), false, explore.Options{Faults: n, Lost: true, AutoResume: true})
	}
	for _, mutant := range explore.Mutants() {
		add("mutant: "+mutant.Name, true, mutant.Options)
	}
	return all
}

// explorer makes the searches, two at a time: more need too much memory.
func explorer(all []search) {
	free := make(chan struct{}, 2)
	for _, one := range all {
		free <- struct{}{}
		go func() {
			began := time.Now()
			got := explore.Explore(one.options)
			one.result <- found{one.name, one.options.Faults, one.mutant, got.States, got.Rest, time.Since(began).Seconds(), got.Violation, got.Trace}
			<-free
		}()
	}
}

// show prints what was found, and tells whether it is as it must be.
func show(one found) bool {
	fmt.Printf("%8d states %7.1f s  ", one.States, one.Seconds)
	switch {
	case one.Mutant && one.Violation == "":
		fmt.Println("NOT CAUGHT")
		return false
	case one.Mutant:
		fmt.Printf("caught after %d steps: %s\n", len(one.Trace), one.Violation)
	case one.Violation == "":
		fmt.Printf("no violation; %d at rest\n", one.AtRest)
	default:
		fmt.Println("VIOLATION:", one.Violation)
		for _, step := range one.Trace {
			fmt.Println("   ", step)
		}
		return false
	}
	return true
}
