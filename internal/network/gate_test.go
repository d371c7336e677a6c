package network

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

const (
	here  = 1 // sequence number of the frame sent into the tap on its own host
	there = 2 // of the frame that comes by the tunnel
	group = 10
)

// Every mode, both directions, by every way in: from the own host and by the
// tunnel, to the guest alone and to all.
func TestModes(t *testing.T) {
	l := newLab(t, 2, underlay4)
	// Whatever reaches the tap "src" on host 0 goes by the tunnel to host 1.
	l.tap(t, 0, TapConfig{Name: "gwtsrc", MAC: mac(1), Gate: redirectTo(l.underlay[1], 7)})
	tap := l.tap(t, 1, TapConfig{Name: "gwtdst", MAC: mac(1), Gate: gate(Closed)})
	must(t, l.hosts[1].OpenTunnel(7, tap))
	remote, local := l.wire(t, 0, "gwtsrc"), l.wire(t, 1, "gwtdst")
	g := guestOf(tap)
	for _, test := range []struct {
		mode       Mode
		in         []uint32
		out        bool
		redirected uint64
	}{
		{Pass, []uint32{here, there, group + here, group + there}, true, 0},
		{Closed, nil, false, 0},
		{TunnelOnly, []uint32{there, group + there}, false, 0},
		{Settling, []uint32{here, there, group + here, group + there}, true, 0},
		{Redirect, nil, false, 4},
		{Leaving, nil, true, 4},
		{Arriving, []uint32{here, there, group + there}, false, 0},
		{Returning, nil, false, 3},
	} {
		t.Run(test.mode.String(), func(t *testing.T) {
			want := Gate{Mode: test.mode, Epoch: 1}
			if test.mode.redirects() {
				want.Tunnel, want.Remote = 8, l.underlay[0] // nobody has 8 open
			}
			must(t, tap.SetGate(want))
			if now, err := tap.Gate(); err != nil || now != want {
				t.Errorf("the gate is %+v (%v), want %+v", now, err, want)
			}
			before, err := tap.Counters()
			must(t, err)
			local.send(t, numbered(mac(1), mac(9), here, 60))
			remote.send(t, numbered(mac(1), mac(9), there, 60))
			local.send(t, numbered(broadcast, mac(9), group+here, 60))
			remote.send(t, numbered(broadcast, mac(9), group+there, 60))
			g.send(t, numbered(mac(9), mac(1), 0, 60))
			waitFor(t, "4 frames judged", func() bool {
				now, err := tap.Counters()
				must(t, err)
				return now.toGuest()-before.toGuest() == 4
			})
			got := g.waiting(t)
			slices.Sort(got)
			if !slices.Equal(got, test.in) {
				t.Errorf("the guest got %v, want %v", got, test.in)
			}
			after, err := tap.Counters()
			must(t, err)
			if passed := after.FromGuestPassed-before.FromGuestPassed == 1; passed != test.out {
				t.Errorf("a frame of the guest passed: %v, want %v", passed, test.out)
			}
			if redirected := after.ToGuestRedirected - before.ToGuestRedirected; redirected != test.redirected {
				t.Errorf("%d frames were redirected, want %d", redirected, test.redirected)
			}
			if after.FromGuestPassed+after.FromGuestDropped != before.FromGuestPassed+before.FromGuestDropped+1 {
				t.Errorf("one frame of the guest was sent, counted %+v after %+v", after, before)
			}
		})
	}
}

func (c Counters) toGuest() uint64 { return c.ToGuestPassed + c.ToGuestRedirected + c.ToGuestDropped }

// waitFor waits for a condition of the kernel that has no event.
func waitFor(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func TestGuestNeverHearsItself(t *testing.T) {
	l := newLab(t, 1, underlay4)
	tap := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Pass)})
	w := l.wire(t, 0, "gwta")
	w.send(t, numbered(broadcast, mac(1), 1, 60))
	w.send(t, numbered(broadcast, mac(2), 2, 60))
	if got := guestOf(tap).waiting(t); !slices.Equal(got, []uint32{2}) {
		t.Errorf("the guest got %v, want only the frame of another", got)
	}
}

func TestTapWithoutGateFailsClosed(t *testing.T) {
	l := newLab(t, 1, underlay4)
	tap := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Pass)})
	w, g := l.wire(t, 0, "gwta"), guestOf(tap)
	w.send(t, numbered(mac(1), mac(9), 1, 60))
	must(t, l.hosts[0].filter.GwGates.Delete(uint32(tap.ifindex)))
	w.send(t, numbered(mac(1), mac(9), 2, 60))
	g.send(t, numbered(mac(9), mac(1), 0, 60))
	if got := g.waiting(t); !slices.Equal(got, []uint32{1}) {
		t.Errorf("the guest got %v, want only the frame from before", got)
	}
	counters, err := tap.Counters()
	must(t, err)
	if counters.FromGuestPassed != 0 {
		t.Errorf("%d frames of the guest passed", counters.FromGuestPassed)
	}
	if err := tap.SetGate(gate(Pass)); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("SetGate on a tap without a gate: %v, want not-found", err)
	}
}

func TestUnknownTunnelFailsClosed(t *testing.T) {
	l := newLab(t, 2, underlay4)
	l.tap(t, 0, TapConfig{Name: "gwtsrc", MAC: mac(1), Gate: redirectTo(l.underlay[1], 7)})
	tap := l.tap(t, 1, TapConfig{Name: "gwtdst", MAC: mac(1), Gate: gate(Pass)})
	w, g := l.wire(t, 0, "gwtsrc"), guestOf(tap)
	must(t, l.hosts[1].OpenTunnel(8, tap))
	w.send(t, numbered(mac(1), mac(9), 1, 60))
	must(t, l.hosts[1].OpenTunnel(7, tap))
	w.send(t, numbered(mac(1), mac(9), 2, 60))
	g.expect(t, 2)
	must(t, l.hosts[1].CloseTunnel(7))
	must(t, l.hosts[1].CloseTunnel(7))
	w.send(t, numbered(mac(1), mac(9), 3, 60))
	must(t, l.hosts[1].OpenTunnel(7, tap))
	w.send(t, numbered(mac(1), mac(9), 4, 60))
	g.expect(t, 4)
}

// expect reads the next numbered frames, which must be these.
func (g guest) expect(t *testing.T, sequences ...uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for _, want := range sequences {
		for {
			frame := g.receive(ctx, t)
			if frame == nil {
				t.Fatalf("frame %d did not come", want)
			}
			if got, ok := sequenceOf(frame); ok {
				if got != want {
					t.Fatalf("frame %d came, want %d", got, want)
				}
				break
			}
		}
	}
}

func TestSetGateRefuses(t *testing.T) {
	l := newLab(t, 1, underlay4)
	tap := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: Gate{Mode: Pass, Epoch: 5}})
	elsewhere := netip.MustParseAddr("10.77.0.9")
	for _, test := range []struct {
		name string
		gate Gate
		code fleet.Code
	}{
		{"zero", Gate{Epoch: 5}, fleet.Invalid},
		{"unknown mode", Gate{Mode: 99, Epoch: 5}, fleet.Invalid},
		{"old epoch", Gate{Mode: Closed, Epoch: 4}, fleet.Conflict},
		{"no tunnel", Gate{Mode: Redirect, Epoch: 5, Remote: elsewhere}, fleet.Invalid},
		{"tunnel too large", Gate{Mode: Redirect, Epoch: 5, Tunnel: 1 << 24, Remote: elsewhere}, fleet.Invalid},
		{"no remote", Gate{Mode: Redirect, Epoch: 5, Tunnel: 1}, fleet.Invalid},
		{"other family", Gate{Mode: Redirect, Epoch: 5, Tunnel: 1, Remote: netip.MustParseAddr("fd00::1")}, fleet.Invalid},
		{"itself", Gate{Mode: Redirect, Epoch: 5, Tunnel: 1, Remote: l.underlay[0]}, fleet.Invalid},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := tap.SetGate(test.gate); fleet.CodeOf(err) != test.code {
				t.Errorf("SetGate: %v, want %v", err, test.code)
			}
			if got, err := tap.Gate(); err != nil || got != (Gate{Mode: Pass, Epoch: 5}) {
				t.Errorf("the gate is %+v (%v) now", got, err)
			}
		})
	}
}
