package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"godwit.dev/godwit/internal/demo"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/probe"
)

// moveWithin bounds one migration with its traffic.
const moveWithin = 3 * time.Minute

type options struct {
	pairs   int
	godwit  string // program
	out     string // folder
	memory  fleet.Bytes
	traffic demo.TrafficConfig
	image   image.Image
}

// subject moves a VM between two hosts and back, once per call of move.
type subject interface {
	name() string
	client() probe.Place
	guest() []netip.Addr
	// move fills in what the host's side of a run measures.
	move(ctx context.Context) (run, error)
	close() error
}

func main() {
	o := options{memory: 256 * fleet.MiB}
	flag.IntVar(&o.pairs, "pairs", 10, "how many runs of each")
	flag.StringVar(&o.godwit, "godwit", "bin/godwit", "the godwit program")
	flag.StringVar(&o.out, "out", "out", "folder for the figures")
	flag.TextVar(&o.memory, "memory", o.memory, "the VM's memory")
	flag.IntVar(&o.traffic.Rate, "rate", probe.DefaultRate, "UDP packets per second")
	flag.IntVar(&o.traffic.Size, "size", probe.DefaultSize, "bytes of UDP payload")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		if hint := fleet.HintOf(err); hint != "" {
			fmt.Fprintln(os.Stderr, "hint:", hint)
		}
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context, w io.Writer) (err error) {
	if o.godwit, err = filepath.Abs(o.godwit); err != nil {
		return err
	}
	if o.image, err = image.Locate(); err != nil {
		return err
	}
	var subjects []subject
	defer func() {
		for _, s := range subjects {
			err = errors.Join(err, s.close())
		}
	}()
	for _, start := range []func(context.Context, options) (subject, error){startGodwit, startPlain} {
		s, err := start(ctx, o)
		if err != nil {
			return err
		}
		subjects = append(subjects, s)
	}
	var runs []run
	for pair := range o.pairs {
		for i := range subjects {
			// Who goes first alternates, so that neither profits from it.
			s := subjects[(i+pair)%len(subjects)]
			one, err := o.measure(ctx, s)
			if err != nil {
				return fmt.Errorf("%s, run %d: %w", s.name(), pair+1, err)
			}
			fmt.Fprintf(w, "%3d/%d %s\n", pair+1, o.pairs, one)
			runs = append(runs, one)
		}
	}
	report := summarize(runs)
	report.print(w)
	return report.write(filepath.Join(o.out, "bench-handover.json"))
}

// measure makes one run under traffic.
func (o options) measure(ctx context.Context, s subject) (run, error) {
	ctx, cancel := context.WithTimeout(ctx, moveWithin)
	defer cancel()
	traffic, err := demo.StartTraffic(ctx, s.client(), s.guest(), o.traffic)
	if err != nil {
		return run{}, err
	}
	before := traffic.Now()
	one, err := s.move(ctx)
	if err == nil {
		err = traffic.Answered(ctx)
	}
	if err != nil {
		return run{}, errors.Join(err, traffic.Stop(ctx))
	}
	seen := traffic.Between(ctx, before, traffic.Now())
	one.Who = s.name()
	one.UDPSent, one.UDPLost, one.UDPDuplicated = seen.UDPSent, seen.UDPLost, seen.UDPDuplicated
	one.LongestGapMs, one.TCPBroken = seen.LongestGapMs, seen.TCPBroken
	return one, traffic.Stop(ctx)
}
