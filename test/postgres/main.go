package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/image"
)

const (
	memory   = 512 * fleet.MiB
	dataSize = fleet.GiB
	// bootWithin is for a boot and the making of a database under emulation.
	bootWithin = 15 * time.Minute
	// moveWithin bounds one migration.
	moveWithin = 5 * time.Minute
	// checkWithin is for the last round and all checks.
	checkWithin = 15 * time.Minute
)

// hosts are those that the VM goes between.
var hosts = [...]string{"h1", "h2"}

// options are what the command line says.
type options struct {
	godwit, out, guest string
	moves              int
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := execute(ctx, os.Args[1:])
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "postgres:", err)
	if hint := fleet.HintOf(err); hint != "" {
		fmt.Fprintln(os.Stderr, "hint:", hint)
	}
	os.Exit(1)
}

func execute(ctx context.Context, args []string) error {
	cache, err := image.CacheDir()
	if err != nil {
		return err
	}
	var o options
	flags := flag.NewFlagSet("postgres", flag.ContinueOnError)
	flags.StringVar(&o.godwit, "godwit", "bin/godwit", "the godwit program")
	flags.StringVar(&o.out, "out", "out", "folder for the result")
	flags.StringVar(&o.guest, "guest", filepath.Join(cache, "postgres"), "folder of the guest, which scripts/setup postgres makes")
	flags.IntVar(&o.moves, "moves", 10, "migrations")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.godwit, err = filepath.Abs(o.godwit); err != nil {
		return err
	}
	r, err := o.run(ctx)
	if err != nil {
		return err
	}
	r.print(os.Stdout)
	if err := r.save(filepath.Join(o.out, "postgres.json")); err != nil {
		return err
	}
	return r.verdict()
}

// run has a database moved, and gives what became of it.
func (o options) run(ctx context.Context) (r report, err error) {
	f, err := fleetlab.Start(ctx, fleetlab.Config{
		Binary: o.godwit, VolumeServers: []string{"v1"},
		Hosts: []fleetlab.Host{{Name: hosts[0]}, {Name: hosts[1]}},
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fmt.Println("a guest boots and makes a database …")
	if err := o.boot(ctx, f); err != nil {
		return r, err
	}
	told := listen(ctx, f)
	defer told.close()
	if _, err := told.await(ctx, bootWithin, func(line string) bool { return line == "ready" }); err != nil {
		return r, err
	}
	for i := range o.moves {
		if err := r.move(ctx, f, hosts[(i+1)%len(hosts)]); err != nil {
			return r, err
		}
	}
	fmt.Println("the database is checked …")
	if _, err := f.API.VM.Type(ctx, &godwitv1.TypeRequest{Name: vmName, Input: []byte("\n")}); err != nil {
		return r, err
	}
	line, err := told.await(ctx, checkWithin, func(line string) bool { return line[0] == '{' })
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal([]byte(line), &r.Guest)
}

// move migrates the VM and prints a line.
func (r *report) move(ctx context.Context, f *fleetlab.Fleet, target string) error {
	ctx, cancel := context.WithTimeout(ctx, moveWithin)
	defer cancel()
	m, err := f.Migrate(ctx, &godwitv1.CreateMigrationRequest{Vm: vmName, Target: target}, nil)
	if err != nil {
		return err
	}
	one := move{
		Target: target, State: m.GetState(), Cause: m.GetCause(),
		TotalMs: m.GetOutcome().GetTotalMs(), BlackoutMs: m.GetOutcome().GetBlackoutMs(),
	}
	r.Moves = append(r.Moves, one)
	fmt.Printf("%3d  to %s  %-9s  %6.1f s  blackout %6.1f ms  %s\n", len(r.Moves), target, one.State, one.TotalMs/1000, one.BlackoutMs, one.Cause)
	return nil
}
