package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/image"
)

// options are what the command line says.
type options struct {
	godwit, etcd, out string
	list, again       bool
	repeat            int
	soak              int // migrations; no cells
	seed              uint64
	size              size
	cells             []cell
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := execute(ctx, os.Args[1:])
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "faults:", err)
	if hint := fleet.HintOf(err); hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", hint)
	}
	os.Exit(1)
}

func execute(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.list {
		for _, c := range o.cells {
			fmt.Printf("%-40s %s\n", c, c.lacks(o.size))
		}
		return nil
	}
	r, err := o.runner()
	if err != nil {
		return err
	}
	if o.soak > 0 {
		return o.runSoak(ctx, r)
	}
	return o.runCells(ctx, r)
}

// runCells runs the chosen cells, and tells what came of them.
func (o options) runCells(ctx context.Context, r *runner) error {
	all, err := o.runAll(ctx, r)
	err = errors.Join(err, r.close())
	fmt.Println()
	all.print(os.Stdout)
	if n := all.missed(); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d cells were tried in vain: they show nothing", n))
	}
	if n := all.violations(); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d cells have violations; %s has what the programs said", n, r.logs))
	}
	return err
}

// runSoak runs many migrations under harm in one lab.
func (o options) runSoak(ctx context.Context, r *runner) error {
	if err := r.ready(ctx); err != nil {
		return err
	}
	made, err := soakVM(ctx, r.fleet, o.soak, o.seed, os.Stdout)
	if err != nil || len(made.Violations) > 0 {
		err = errors.Join(err, r.tell("soak", fmt.Sprintln(err, made.Violations), make([]int, len(r.processes()))))
	}
	err = errors.Join(err, r.close())
	if ctx.Err() != nil {
		return errors.Join(errors.New("the run was cut off, and is not judged"), err)
	}
	made.print(os.Stdout)
	err = errors.Join(err, made.save(filepath.Join(o.out, "soak.json")))
	if n := len(made.Violations); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d violations; %s has what the programs said", n, r.logs))
	}
	return err
}

func (o options) runner() (*runner, error) {
	img, err := image.Locate()
	if err != nil {
		return nil, err
	}
	config := fleetlab.Config{Image: img, Servers: o.size.servers, Etcd: o.size.members, VolumeServers: []string{storageHost}}
	if config.Binary, err = filepath.Abs(o.godwit); err != nil {
		return nil, err
	}
	if config.EtcdProgram, err = filepath.Abs(o.etcd); err != nil {
		return nil, err
	}
	return &runner{config: config, logs: filepath.Join(o.out, "faults"), out: os.Stdout}, nil
}

// runAll runs the chosen cells and gives their results. Each is saved at once,
// beside those of other cells; of several runs of one, the first bad one stays.
func (o options) runAll(ctx context.Context, r *runner) (report, error) {
	path := filepath.Join(o.out, "faults.json")
	all, err := load(path)
	if err != nil {
		return all, err
	}
	build, err := buildOf(r.config.Binary)
	if err != nil {
		return all, err
	}
	all, other := all.ofBuild(build)
	if other > 0 {
		fmt.Printf("%s has %d cells of another build, which are run anew\n", path, other)
	}
	for i, c := range o.cells {
		if _, known := all.find(c); known && !o.again {
			continue
		}
		for range o.repeat {
			one, err := o.runOnce(ctx, r, i)
			if err != nil {
				return all.only(o.cells), err
			}
			all.put(one)
			if err := all.save(path); err != nil {
				return all, err
			}
			if !one.Ran || len(one.Violations) > 0 {
				break
			}
		}
	}
	return all.only(o.cells), nil
}

// runOnce runs one of the chosen cells once, and prints a line of it.
func (o options) runOnce(ctx context.Context, r *runner, i int) (result, error) {
	begun, c := time.Now(), o.cells[i]
	fmt.Printf("%3d/%d %-40s ", i+1, len(o.cells), c)
	one, err := r.run(ctx, c)
	if err != nil {
		fmt.Println("failed")
		return one, fmt.Errorf("%s: %w", c, err)
	}
	fmt.Printf("%4.0f s  %s\n", time.Since(begun).Seconds(), one)
	return one, nil
}

func parse(args []string) (o options, err error) {
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	flags.StringVar(&o.godwit, "godwit", "bin/godwit", "the godwit program")
	flags.StringVar(&o.etcd, "etcd", "bin/lab-etcd", "the etcd of the lab")
	flags.StringVar(&o.out, "out", "out", "folder for the results")
	flags.BoolVar(&o.list, "list", false, "list the cells and run nothing")
	flags.BoolVar(&o.again, "again", false, "run cells, too, that the results have already")
	flags.IntVar(&o.size.servers, "servers", 3, "servers of the lab")
	flags.IntVar(&o.size.members, "members", 3, "members of the lab's etcd")
	flags.IntVar(&o.repeat, "repeat", 1, "how often each cell is run, until something is violated")
	flags.IntVar(&o.soak, "soak", 0, "run no cells, but so many migrations back to back under random faults")
	flags.Uint64Var(&o.seed, "seed", 1, "of the random faults of --soak")
	someFaults, someVictims, someStates := faults, victims, states
	choose(flags, "fault", &someFaults)
	choose(flags, "victim", &someVictims)
	choose(flags, "state", &someStates)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.repeat < 1:
		return o, fmt.Errorf("%d runs of each cell", o.repeat)
	}
	o.cells = matrix(someFaults, someVictims, someStates)
	return o, nil
}

// choose adds a flag that selects some of a list.
func choose[T ~string](flags *flag.FlagSet, name string, list *[]T) {
	all := *list
	var names []string
	for _, one := range all {
		names = append(names, string(one))
	}
	flags.Func(name, "only these, with commas between: "+strings.Join(names, ", "), func(text string) error {
		*list = nil
		for word := range strings.SplitSeq(text, ",") {
			if !slices.Contains(all, T(word)) {
				return fmt.Errorf("there is no %q", word)
			}
			*list = append(*list, T(word))
		}
		return nil
	})
}
