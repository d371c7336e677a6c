package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/witness"
)

const (
	// moveWithin bounds one migration with its traffic.
	moveWithin = 3 * time.Minute
	// dirtyPart is the part of a guest's memory that it writes to.
	dirtyPart = 4
)

// hosts are those that VMs go between.
var hosts = [...]string{"h1", "h2"}

// options are what the command line says, and the screen.
type options struct {
	screen
	runs     int    // 0: each benchmark's own number
	godwit   string // program
	out      string // folder
	memory   fleet.Bytes
	dirtyMiB int      // that a guest writes in a second
	mbit     int      // a second, of a TCP flow
	workload string   // pattern of names, of the zoo
	serve    []string // that plain QEMU's guest runs
	image    image.Image
}

// benchmark measures, prints and writes its report. It fails, too, if Godwit
// lost or doubled anything.
type benchmark struct {
	name string
	run  func(context.Context, options) error
}

var benchmarks = [...]benchmark{{"handover", runHandover}, {"client", runClient}, {"volume", runVolume}, {"disk", runDisk}, {"tcp", runTCP}, {"forecast", runForecast}}

// usual is how many of the benchmarks run unless some are named.
const usual = 2

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := execute(ctx, os.Args[1:])
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	if hint := fleet.HintOf(err); hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", hint)
	}
	os.Exit(1)
}

func execute(ctx context.Context, args []string) error {
	o := options{screen: screen{os.Stdout}, memory: 256 * fleet.MiB}
	chosen, err := o.parse(args)
	if err != nil {
		return err
	}
	if o.godwit, err = filepath.Abs(o.godwit); err != nil {
		return err
	}
	if o.image, err = image.Locate(); err != nil {
		return err
	}
	var errs []error
	for _, b := range chosen {
		o.say("== %s", b.name)
		if err := b.run(ctx, o); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", b.name, err))
		}
		if ctx.Err() != nil {
			break
		}
		o.say("")
	}
	return errors.Join(errs...)
}

// parse reads the command line: flags, and names of benchmarks between them.
func (o *options) parse(args []string) (chosen []benchmark, err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "usage: bench [flags] [handover] [client] [volume] [disk] [tcp] [forecast]\n")
		flags.PrintDefaults()
	}
	flags.IntVar(&o.runs, "runs", 0, "how many pairs, migrations of each case, or rounds of it; 0 is 10, 20, 3, 6, 3 and 3")
	flags.StringVar(&o.godwit, "godwit", "bin/godwit", "the godwit program")
	flags.StringVar(&o.out, "out", "out", "folder for the figures")
	flags.TextVar(&o.memory, "memory", o.memory, "a VM's memory")
	flags.IntVar(&o.dirtyMiB, "dirty", 0, "MiB that a guest writes in a second")
	flags.IntVar(&o.mbit, "mbit", 0, "limit of a TCP flow in Mbit/s; 0 is none")
	flags.StringVar(&o.workload, "workload", "*", "pattern of names of the zoo's guests")
	var names []string
	for {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		if flags.NArg() == 0 {
			break
		}
		names, args = append(names, flags.Arg(0)), flags.Args()[1:]
	}
	if o.runs < 0 || o.mbit < 0 {
		return nil, fmt.Errorf("%d runs, flows of %d Mbit/s", o.runs, o.mbit)
	}
	if _, err := path.Match(o.workload, ""); err != nil {
		return nil, fmt.Errorf("%q: %w", o.workload, err)
	}
	if err := o.load().Valid(); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return benchmarks[:usual], nil
	}
	for _, name := range names {
		b, err := find(name)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, b)
	}
	return chosen, nil
}

func find(name string) (benchmark, error) {
	var names []string
	for _, b := range benchmarks {
		if b.name == name {
			return b, nil
		}
		names = append(names, b.name)
	}
	return benchmark{}, fmt.Errorf("there is no benchmark %q, only %s", name, strings.Join(names, ", "))
}

// load is what guests do to their memory. What they write to is in use, and
// copied, also if they do not write.
func (o options) load() witness.Load {
	return witness.Load{BytesPerSecond: int64(o.dirtyMiB) << 20, SetMiB: int(o.memory / fleet.MiB / dirtyPart)}
}

// path is where a benchmark's figures go.
func (o options) path(benchmark string) string {
	return filepath.Join(o.out, "bench-"+benchmark+".json")
}
