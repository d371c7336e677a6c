package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/sim"
)

const simHelp = `Sim runs whole fleets in virtual time: the real core, the real reconciler and
life cycle of VMs of three servers, the agents' rules, and models of hosts,
QEMUs, the network and the store. VMs are moved, stopped and started at random
while processes crash and hang, clocks jump, networks are cut one way or both,
disks fill up, the store has no leader, answers are lost or come twice, and
hosts are declared lost. It touches nothing outside and needs no root.

For every seed it checks that no two instances have effect and none of an older
epoch after a newer one, that no agent ends the last instance of a VM, that no
acknowledged write is lost and no packet is doubled, or lost without an excuse,
that the history of each VM's owner is linearizable, and that after the last
fault every migration comes to its end, and leaves nothing on any host.

A seed always does the same. With --seed one is run alone, and with --trace it
tells what happens. With --bug a known mistake is put in, and the first seed
that shows it is the last; --check-bugs demands that each mistake is found. The
result of many seeds is written to out/sim.json. A violation ends in exit
code 1.`

const (
	simSeedsMax  = 10_000_000
	simTold      = 10 // violations that are printed, at most
	simEvery     = 2 * time.Second
	simGCPercent = 400 // little is alive, and much passes
)

// simFlags are the flags of godwit sim.
type simFlags struct {
	seeds   int
	first   int
	seed    int
	trace   bool
	bug     string
	list    bool
	check   bool
	harm    time.Duration
	workers int
	out     string
}

func newSimCommand(app *App) *cobra.Command {
	var flags simFlags
	cmd := &cobra.Command{
		Use:   "sim",
		Short: "Simulate fleets under faults, and check that nothing is lost",
		Long:  simHelp,
		Example: `  godwit sim --seeds 10000
  godwit sim --seed 17 --trace | less
  godwit sim --check-bugs
  godwit sim --seeds 1000 --bug run-without-commit`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.valid(cmd.Flags().Changed); err != nil {
				return err
			}
			if flags.list {
				return app.listBugs()
			}
			if flags.check {
				return app.findBugs(cmd.Context(), flags.seeds)
			}
			if cmd.Flags().Changed("seed") {
				return app.simulateOne(flags)
			}
			return app.simulate(cmd.Context(), flags)
		},
	}
	flags.seeds, flags.first = 1000, 1
	intFlag(cmd, &flags.seeds, "seeds", 1, simSeedsMax, "how many seeds")
	intFlag(cmd, &flags.first, "first", 0, simSeedsMax, "the first seed")
	intFlag(cmd, &flags.seed, "seed", 0, 2*simSeedsMax, "run this seed alone, and say all that was wrong with it")
	intFlag(cmd, &flags.workers, "workers", 0, 1024, "fleets at a time; 0 for as many as processors")
	f := cmd.Flags()
	f.BoolVar(&flags.trace, "trace", false, "with --seed: tell what happens; with --json on stderr")
	f.StringVar(&flags.bug, "bug", "", "put in the mistake of this `name`")
	f.BoolVar(&flags.list, "list-bugs", false, "only list the mistakes that can be put in")
	f.BoolVar(&flags.check, "check-bugs", false, "put each mistake in, and fail unless --seeds show it")
	f.DurationVar(&flags.harm, "harm", sim.DefaultHarm, "for so long each fleet has faults, in its own time")
	f.StringVar(&flags.out, "out", "out/sim.json", "`file` for the result of many seeds")
	_ = cmd.RegisterFlagCompletionFunc("bug", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return bugNames(), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

func bugNames() (names []string) {
	for _, one := range sim.Bugs() {
		names = append(names, string(one.Bug))
	}
	return names
}

// simAlone are flags beside which others would say nothing.
var simAlone = []struct {
	flag    string
	without []string
}{
	{"list-bugs", []string{"check-bugs", "seeds", "first", "seed", "trace", "bug", "harm", "workers", "out"}},
	{"check-bugs", []string{"first", "seed", "trace", "bug", "harm", "workers", "out"}},
	{"seed", []string{"seeds", "first", "workers", "out"}},
}

// valid checks the flags; changed tells which of them were given.
func (f *simFlags) valid(changed func(flag string) bool) error {
	for _, one := range simAlone {
		for _, other := range one.without {
			if changed(one.flag) && changed(other) {
				return invalidFlag(other, "says nothing with --"+one.flag)
			}
		}
	}
	switch {
	case f.trace && !changed("seed"):
		return invalidFlag("trace", "needs --seed")
	case f.bug != "" && !slices.Contains(bugNames(), f.bug):
		return invalidFlag("bug", fmt.Sprintf("there is no bug %q: see godwit sim --list-bugs", f.bug))
	case f.harm < time.Second || f.harm > 24*time.Hour:
		return invalidFlag("harm", "must be from 1s to 24h")
	}
	return nil
}

func (f *simFlags) options() sim.Options { return sim.Options{Harm: f.harm, Bug: sim.Bug(f.bug)} }

func (a *App) listBugs() error {
	bugs := sim.Bugs()
	if a.json {
		return a.printJSON(map[string]any{"bugs": bugs})
	}
	t := table{style: a.style(), rows: [][]string{{"BUG", "WHAT IT DOES"}}}
	for _, one := range bugs {
		t.add(string(one.Bug), one.What)
	}
	return a.printText(t.write)
}

// findBugs puts each bug in, and demands that it shows.
func (a *App) findBugs(ctx context.Context, seeds int) error {
	missed := 0
	var found []sim.Summary
	for _, one := range sim.Bugs() {
		s := sim.FindBug(ctx, one.Bug, seeds)
		if ctx.Err() != nil {
			return context.Canceled
		}
		found = append(found, s)
		said := "NOT FOUND"
		if len(s.Failed) > 0 {
			said = fmt.Sprintf("seed %d: %s", s.Failed[0].Seed, s.Failed[0].Violations[0])
		} else {
			missed++
		}
		if !a.json {
			fmt.Fprintf(a.Out, "%-24s %4d seeds %6.1f s  %s\n", one.Bug, s.Seeds, s.Seconds, said)
		}
	}
	if a.json {
		if err := a.printJSON(map[string]any{"bugs": found}); err != nil {
			return err
		}
	}
	if missed > 0 {
		return &fleet.Error{Code: fleet.Failed, Op: "simulate", Subject: fmt.Sprintf("%d bugs", missed), Cause: "they were put in and not found"}
	}
	return nil
}

// simulateOne runs one seed, with its trace if that is wanted.
func (a *App) simulateOne(flags simFlags) error {
	var trace io.Writer
	switch {
	case flags.trace && a.json:
		trace = a.Err
	case flags.trace:
		trace = a.Out
	}
	r := sim.Run(uint64(flags.seed), flags.options(), trace)
	if a.json {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else if err := a.printText(func(w io.Writer) {
		fmt.Fprintf(w, "seed %d: %d migrations in %v, %d packets, %d violations\n", r.Seed, r.Migrations, r.Simulated.Round(time.Second), r.Packets, len(r.Violations))
		for _, violation := range r.Violations {
			fmt.Fprintf(w, "  %s\n", violation)
		}
	}); err != nil {
		return err
	}
	return violated(len(r.Violations), "seed "+fmt.Sprint(r.Seed), replay(fmt.Sprint(r.Seed), flags.options()))
}

// simulate runs many seeds and tells what came of them.
func (a *App) simulate(ctx context.Context, flags simFlags) error {
	out, err := createOut(flags.out)
	if err != nil {
		return err
	}
	defer debug.SetGCPercent(debug.SetGCPercent(simGCPercent))
	summary := sim.Many(ctx, sim.Plan{
		Options: flags.options(), First: uint64(flags.first), Seeds: flags.seeds, Workers: flags.workers,
		StopAtFirst: flags.bug != "", Progress: a.simProgress(flags.seeds),
	})
	if err := errors.Join(writeSummary(out, summary), a.printSummary(summary)); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Canceled
	}
	return violated(len(summary.Failed), fmt.Sprintf("%d of %d seeds", len(summary.Failed), summary.Seeds), replay("SEED", flags.options()))
}

// simProgress tells now and then how far it is.
func (a *App) simProgress(seeds int) func(done, failed int) {
	told := a.Now()
	return func(done, failed int) {
		if now := a.Now(); now.Sub(told) >= simEvery {
			told = now
			fmt.Fprintf(a.Err, "%d of %d seeds, %d with violations\n", done, seeds, failed)
		}
	}
}

func writeSummary(out io.WriteCloser, summary sim.Summary) error {
	if out == nil {
		return nil
	}
	text, err := json.MarshalIndent(summary, "", "  ")
	if err == nil {
		_, err = out.Write(append(text, '\n'))
	}
	return errors.Join(err, out.Close())
}

func (a *App) printSummary(s sim.Summary) error {
	if a.json {
		return a.printJSON(s)
	}
	return a.printText(func(w io.Writer) {
		t := table{style: a.style(), rows: [][]string{{"WHAT", "COUNT"}}}
		t.add("seeds", fmt.Sprint(s.Seeds))
		t.add("migrations", fmt.Sprint(s.Migrations))
		for _, state := range migration.States() {
			if n := s.Final[state]; n > 0 {
				t.add("  "+string(state), fmt.Sprint(n))
			}
		}
		for _, way := range sim.Ways() {
			t.add("  "+string(way), fmt.Sprint(s.Ways[way]))
		}
		t.add("faults", fmt.Sprint(sum(s.Faults)))
		for _, fault := range sim.Faults() {
			t.add("  "+string(fault), fmt.Sprint(s.Faults[fault]))
		}
		t.add("packets", fmt.Sprint(s.Packets))
		t.add("  lost with an excuse", fmt.Sprint(s.Lost))
		t.add("operations on owners", fmt.Sprint(s.Operations))
		t.add("simulated hours", fmt.Sprintf("%.1f", s.Hours))
		t.add("  in each second", fmt.Sprintf("%.2f", s.Rate))
		t.add("seeds with violations", fmt.Sprint(len(s.Failed)))
		t.write(w)
		writeFailures(w, s)
	})
}

func sum(counts map[sim.Fault]int) (all int) {
	for _, n := range counts {
		all += n
	}
	return all
}

// writeFailures says of each seed what was wrong first, and how to see it again.
func writeFailures(w io.Writer, s sim.Summary) {
	for i, failed := range s.Failed {
		if i == simTold {
			fmt.Fprintf(w, "\nand %d more: see the JSON\n", len(s.Failed)-simTold)
			return
		}
		fmt.Fprintf(w, "\nseed %d: %s\n", failed.Seed, failed.Violations[0])
		if more := len(failed.Violations) - 1; more > 0 {
			fmt.Fprintf(w, "  and %d more\n", more)
		}
		fmt.Fprintf(w, "  see it again: %s\n", replay(fmt.Sprint(failed.Seed), sim.Options{Bug: s.Bug, Harm: s.Harm}))
	}
}

// replay is the command that shows a seed again.
func replay(seed string, options sim.Options) string {
	command := "godwit sim --seed " + seed + " --trace"
	if options.Harm != sim.DefaultHarm {
		command += " --harm " + options.Harm.String()
	}
	if options.Bug != sim.NoBug {
		command += " --bug " + string(options.Bug)
	}
	return command
}

func violated(violations int, subject, replay string) error {
	if violations == 0 {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Failed, Op: "simulate", Subject: subject, Cause: "what must not be was",
		Hint: "see it again with " + replay,
	}
}
