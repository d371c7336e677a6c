package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/probe"
)

const (
	// soakRate and soakRecords are a second, so that an hour of them can be kept.
	soakRate    = 100
	soakRecords = 20
	soakDisk    = 1 << 30 // more than fourteen hours
	// soakStraggle is longer than a guest stands still while one harm follows
	// the other: what comes later is lost, what comes late is not.
	soakStraggle = 2 * time.Minute
	// movesWithin bounds a migration, and the time until the next can begin.
	movesWithin = 3 * time.Minute
	askAgain    = 100 * time.Millisecond
	// tellEvery is the number of migrations after which a line is printed.
	tellEvery = 10
)

// soak is one VM that migrates again and again while harm is done.
type soak struct {
	watched
	out io.Writer
	tcp *probe.TCP

	begun time.Time
	made  soakResult
	found findings
}

// soakVM has a VM migrate so often, back and forth, under harm chosen at
// random, and judges what became of it.
func soakVM(ctx context.Context, f *fleetlab.Fleet, migrations int, seed uint64, out io.Writer) (soakResult, error) {
	s := &soak{watched: watched{fleet: f}, out: out, begun: time.Now(), made: soakResult{Seed: seed, States: map[string]int{}, Causes: map[string]int{}}}
	before, err := listFirst(ctx, f)
	if err != nil {
		return s.made, err
	}
	if err := s.open(ctx); err != nil {
		return s.made, err
	}
	if err := s.moveUnderHarm(ctx, migrations, seed); err != nil {
		s.found.add("stuck", "%v", err)
	}
	evidence, err := s.close(ctx)
	if ctx.Err() != nil { // nothing can be said
		return s.made, errors.Join(ctx.Err(), err)
	}
	evidence.checkTurns(&s.found, s.made.turns)
	evidence.checkReplies(&s.found)
	evidence.checkDisks(&s.found)
	evidence.checkPackets(&s.found, 0)
	s.checkLeft(ctx, before)
	s.made.put(evidence, s.found)
	return s.made, err
}

// open boots the VM and begins to watch it.
func (s *soak) open(ctx context.Context) (err error) {
	if err := s.boot(ctx, "soak", soakDisk, soakRecords); err != nil {
		return err
	}
	if err := s.openEyes(ctx, probe.UDPConfig{Rate: soakRate, Straggle: soakStraggle}); err != nil {
		return err
	}
	s.tcp, err = probe.StartTCP(ctx, s.fleet.Client, probe.TCPConfig{Target: netip.AddrPortFrom(s.guest.Addrs[0], 0), Straggle: soakStraggle})
	return err
}

// moveUnderHarm migrates while harm is done, and returns when all of it is
// over and every program is there again.
func (s *soak) moveUnderHarm(ctx context.Context, migrations int, seed uint64) error {
	harming, stop := context.WithCancel(ctx)
	defer stop()
	moving, end := context.WithCancelCause(ctx)
	defer end(nil)
	h := &harm{fleet: s.fleet, random: rand.New(rand.NewPCG(seed, seed)), done: map[string]int{}}
	harmed := make(chan struct{})
	go func() {
		defer close(harmed)
		if err := h.run(harming); err != nil { // migrations without harm show nothing
			end(fmt.Errorf("do harm: %w", err))
		}
	}()

	err := s.moveAll(moving, migrations, h)
	stop()
	<-harmed
	if err = errors.Join(err, context.Cause(moving)); err != nil {
		return err
	}
	s.made.Faults = h.done
	for _, server := range s.fleet.Servers() { // all are meant to be there
		if server.PID() == 0 {
			return fmt.Errorf("a server has ended by itself; its log is %s", server.LogPath())
		}
	}
	return awaitPrograms(ctx, s.fleet)
}

func (s *soak) moveAll(ctx context.Context, migrations int, h *harm) error {
	for n := 1; n <= migrations; n++ {
		m, err := s.move(ctx, n)
		if err != nil {
			return fmt.Errorf("migration %d: %w", n, err)
		}
		s.made.count(m)
		if err := s.answers(ctx); err != nil {
			return fmt.Errorf("after migration %d, %s: %w", n, m.GetId(), err)
		}
		if n%tellEvery == 0 || n == migrations {
			fmt.Fprintf(s.out, "%4d migrations: %v; %d faults; %s\n", n, s.made.States, h.count(), time.Since(s.begun).Round(time.Second))
		}
	}
	return nil
}

// answers waits for an echo: the VM is alive, wherever it is.
func (s *soak) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, returnWithin)
	defer cancel()
	return s.udp.Answered(ctx, s.udp.Mark(), 1)
}

// move migrates the VM to the host that it is not on.
func (s *soak) move(ctx context.Context, number int) (*godwitv1.Migration, error) {
	ctx, cancel := context.WithTimeout(ctx, movesWithin)
	defer cancel()
	request := &godwitv1.CreateMigrationRequest{
		Vm: s.guest.Name, Policy: &godwitv1.MigrationPolicy{BandwidthMax: slowly, OnPredictedFailure: "go-on"}, RequestId: fmt.Sprintf("soak-%d", number),
	}
	ticker := time.NewTicker(askAgain)
	defer ticker.Stop()
	for {
		m, err := s.begin(ctx, request)
		if err == nil {
			return s.fleet.Follow(ctx, m.GetId(), nil)
		}
		switch fleet.CodeOf(err) {
		case fleet.Unavailable, fleet.Deadline, fleet.Conflict, fleet.NoFit: // harm, or the last one still holds the VM
		default:
			return nil, err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("it could not begin: %w", err)
		}
	}
}

// begin asks once. The request says where to when that is first known, so that
// it is the same one when it is asked again.
func (s *soak) begin(ctx context.Context, request *godwitv1.CreateMigrationRequest) (*godwitv1.Migration, error) {
	if request.GetTarget() == "" {
		vm, err := s.guest.Record(ctx)
		if err != nil {
			return nil, err
		}
		if vm.GetPhase() != "running" {
			return nil, &fleet.Error{Code: fleet.Failed, Op: "soak", Subject: "vm " + s.guest.Name, Cause: "it is " + vm.GetPhase() + ": " + vm.GetCause()}
		}
		request.Target = targetHost
		if vm.GetOwner().GetHost() == targetHost {
			request.Target = sourceHost
		}
	}
	answer, err := s.fleet.API.Migration.Create(ctx, request)
	return answer.GetMigration(), err
}

// close ends the traffic, removes the VM and gives what was seen.
func (s *soak) close(ctx context.Context) (e evidence, err error) {
	bounded, cancel := context.WithTimeout(ctx, 2*soakStraggle)
	defer cancel()
	stream := s.tcp.Stop(bounded)
	if stream.Broken {
		s.found.add("stream broken", "%s", stream.Reason)
	}
	s.made.StreamBytes = stream.Bytes
	e.client, err = s.udp.Stop(bounded)
	s.made.Losses = s.udp.Losses(s.udp.Begun(), s.udp.Mark())
	flow, reportErr := s.asked(bounded)
	e.doubled, s.made.GuestReceived = flow.Duplicated, flow.Received
	frames, wireErr := s.wire.stop()
	e.frames = frames
	if err := s.end(bounded); err != nil {
		s.found.add(leftBehind, "the VM cannot be removed: %v", err)
	}
	disks, diskErr := s.stopFollowing()
	e.disks = disks
	if err := s.removeDisks(bounded); err != nil {
		s.found.add(leftBehind, "its disks cannot be removed: %v", err)
	}
	e.source, e.target = s.fleet.Lab.Host(sourceHost).Addr, s.fleet.Lab.Host(targetHost).Addr
	return e, errors.Join(err, reportErr, wireErr, diskErr)
}

// checkLeft demands that every host lists what it listed before.
func (s *soak) checkLeft(ctx context.Context, before map[string][]string) {
	bounded, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	var left []string
	err := poll(bounded, "nothing to be left", func() (bool, error) {
		after, err := listHosts(s.fleet)
		left = differences(before, after)
		return len(left) == 0, err
	})
	if err != nil {
		s.found.add(leftBehind, "%v: %q", err, left)
	}
	for _, host := range s.fleet.Hosts() {
		if one, err := s.fleet.Inventory(ctx, host); err != nil || !one.Empty() {
			s.found.add(leftBehind, "%s: %s %v", host, one, err)
		}
	}
}
