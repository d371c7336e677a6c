package qemu_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qemu"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// pair starts a running source and a target that listens.
func pair(t *testing.T, binary string, in qemu.Incoming) (source, target *qemu.Instance, out qemu.Outgoing) {
	t.Helper()
	source = start(t, config(t, binary))
	resume(t, source)
	c := config(t, binary)
	c.Incoming = true
	target = start(t, c)
	in.Listen = loopback
	port, err := target.Listen(within(t), in)
	if err != nil {
		t.Fatal(err)
	}
	return source, target, qemu.Outgoing{
		Address: netip.AddrPortFrom(loopback, port), DowntimeLimit: 10 * time.Millisecond, CredsDir: in.CredsDir,
		Connections: in.Connections,
	}
}

func send(t *testing.T, source *qemu.Instance, out qemu.Outgoing) {
	t.Helper()
	if err := source.SendTo(within(t), out); err != nil {
		t.Fatal(err)
	}
}

func subscribe(t *testing.T, i *qemu.Instance) *qemu.Subscription {
	t.Helper()
	events := i.Subscribe()
	t.Cleanup(events.Close)
	return events
}

func TestMigration(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		for _, connections := range []int{1, 2} {
			t.Run(fmt.Sprintf("%d connections", connections), func(t *testing.T) { testMigration(t, binary, connections) })
		}
	})
}

func testMigration(t *testing.T, binary string, connections int) {
	source, target, out := pair(t, binary, qemu.Incoming{Connections: connections})
	fromSource, fromTarget := subscribe(t, source), subscribe(t, target)
	status(t, target, "inmigrate")
	_, err := target.Resume(within(t))
	code(t, err, fleet.Conflict)
	send(t, source, out)
	await(t, fromSource, qemu.Event{Kind: qemu.Stopped})
	await(t, fromSource, changed(qemu.StatusPreSwitchover))
	_, err = source.Resume(within(t))
	code(t, err, fleet.Conflict)
	_, err = target.Resume(within(t))
	code(t, err, fleet.Conflict)
	if err := source.ContinueSwitch(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, fromTarget, changed(qemu.StatusCompleted))
	await(t, fromSource, changed(qemu.StatusCompleted))
	settled(t, source, "postmigrate")
	status(t, target, "paused")
	p, err := source.Progress(within(t))
	if err != nil || p.Status != qemu.StatusCompleted || p.Pass < 1 || p.Total < 64*fleet.MiB || p.Transferred == 0 {
		t.Errorf("progress %+v, %v", p, err)
	}
	code(t, source.CancelMigration(within(t)), fleet.Conflict)
	resume(t, target)
	sendOn(t, binary, target)
}

// sendOn migrates an instance that was a target before, whose parameters and
// objects are still set.
func sendOn(t *testing.T, binary string, source *qemu.Instance) {
	t.Helper()
	c := config(t, binary)
	c.Incoming = true
	target := start(t, c)
	migrate(t, source, target)
	resume(t, target)
}

// migrate migrates without TLS up to the point where the target may run.
func migrate(t *testing.T, source, target *qemu.Instance) {
	t.Helper()
	port, err := target.Listen(within(t), qemu.Incoming{Listen: loopback})
	if err != nil {
		t.Fatal(err)
	}
	fromSource, fromTarget := subscribe(t, source), subscribe(t, target)
	send(t, source, qemu.Outgoing{Address: netip.AddrPortFrom(loopback, port), DowntimeLimit: time.Second})
	await(t, fromSource, changed(qemu.StatusPreSwitchover))
	if err := source.ContinueSwitch(within(t)); err != nil {
		t.Fatal(err)
	}
	await(t, fromTarget, changed(qemu.StatusCompleted))
	await(t, fromSource, changed(qemu.StatusCompleted))
}

// TestCancel checks in which state a cancelled source is, which is the heart
// of every rollback.
func TestCancel(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		for name, tt := range map[string]struct {
			stop  bool // by Stop, in the copy
			pause bool // cancel in pre-switchover, not in the copy
			want  []qemu.RunState
		}{
			"in the copy":                      {want: []qemu.RunState{"running"}},
			"in pre-switchover":                {pause: true, want: []qemu.RunState{"running"}},
			"in the copy, stopped by us":       {stop: true, want: []qemu.RunState{"paused"}},
			"in pre-switchover, stopped by us": {stop: true, pause: true, want: []qemu.RunState{"paused", "postmigrate"}},
		} {
			t.Run(name, func(t *testing.T) {
				source, _, out := pair(t, binary, qemu.Incoming{})
				events := subscribe(t, source)
				out.BandwidthMax = 1 << 10 // it must not end before we have stopped it
				send(t, source, out)
				await(t, events, changed(qemu.StatusActive))
				if tt.stop {
					if err := source.Stop(within(t)); err != nil {
						t.Fatal(err)
					}
				}
				if tt.pause {
					if err := source.SetBandwidth(within(t), 0); err != nil {
						t.Fatal(err)
					}
					await(t, events, changed(qemu.StatusPreSwitchover))
				}
				if err := source.CancelMigration(within(t)); err != nil {
					t.Fatal(err)
				}
				if got, err := source.Status(within(t)); err != nil || !slices.Contains(tt.want, got) {
					t.Errorf("state %q, %v; want one of %q", got, err, tt.want)
				}
				if p, err := source.Progress(within(t)); err != nil || p.Status != qemu.StatusCancelled {
					t.Errorf("progress %+v, %v", p, err)
				}
				resume(t, source)
				if err := source.CancelMigration(within(t)); err != nil {
					t.Errorf("cancelled again: %v", err)
				}
			})
		}
	})
}

func TestTargetDies(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		source, target, out := pair(t, binary, qemu.Incoming{})
		events := subscribe(t, source)
		out.BandwidthMax = 1 << 10
		send(t, source, out)
		await(t, events, changed(qemu.StatusActive))
		if err := target.Kill(within(t)); err != nil {
			t.Fatal(err)
		}
		if err := source.SetBandwidth(within(t), 0); err != nil {
			t.Fatal(err)
		}
		await(t, events, changed(qemu.StatusFailed))
		status(t, source, "running")
		if p, err := source.Progress(within(t)); err != nil || p.Error == "" {
			t.Errorf("progress %+v, %v; want the error", p, err)
		}
	})
}

func TestOutgoingLimits(t *testing.T) {
	source := start(t, config(t, installed))
	for _, limit := range []time.Duration{-1, time.Microsecond, time.Hour} {
		code(t, source.SendTo(within(t), qemu.Outgoing{DowntimeLimit: limit}), fleet.Invalid)
	}
	p, err := source.Progress(within(t))
	if err != nil || p.Status != qemu.StatusNone {
		t.Errorf("progress %+v, %v", p, err)
	}
}
