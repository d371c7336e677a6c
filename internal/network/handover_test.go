package network

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// load sends numbered frames into a device at a steady rate until stopped.
type load struct {
	stop chan struct{}
	done sync.WaitGroup
	sent uint32
}

func (w wire) load(t *testing.T, perSecond, size int) *load {
	return steadily(perSecond, func(sequence uint32) { w.send(t, numbered(mac(1), mac(9), sequence, size)) })
}

func steadily(perSecond int, send func(sequence uint32)) *load {
	l := &load{stop: make(chan struct{})}
	l.done.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-l.stop:
				return
			case <-tick.C:
			}
			for range perSecond / 1000 {
				send(l.sent)
				l.sent++
			}
		}
	})
	return l
}

// end stops the load and gives the number of frames sent.
func (l *load) end() uint32 {
	close(l.stop)
	l.done.Wait()
	return l.sent
}

// reader is a running guest: it reads until it is stopped, as QEMU does.
type reader struct {
	stop context.CancelFunc
	done sync.WaitGroup
	got  []uint32
}

func (g guest) run(t *testing.T) *reader {
	ctx, stop := context.WithCancel(t.Context())
	r := &reader{stop: stop}
	r.done.Go(func() {
		for ctx.Err() == nil {
			// A frame that has been read counts, also when the guest
			// is stopped meanwhile.
			frame := g.receive(ctx, t)
			if frame == nil {
				return
			}
			if sequence, ok := sequenceOf(frame); ok {
				r.got = append(r.got, sequence)
			}
		}
	})
	return r
}

func (r *reader) end() []uint32 {
	r.stop()
	r.done.Wait()
	return r.got
}

// waitCount waits until the two taps have let count frames pass to guests.
func waitCount(t *testing.T, count uint32, taps ...*Tap) {
	t.Helper()
	waitFor(t, "all frames at their guests", func() bool {
		var passed uint64
		for _, tap := range taps {
			counters, err := tap.Counters()
			must(t, err)
			passed += counters.ToGuestPassed
		}
		return passed >= uint64(count)
	})
}

// checkOnce reports every number below sent that was not received exactly once.
func checkOnce(t *testing.T, sent uint32, received ...[]uint32) {
	t.Helper()
	times := make([]int, sent)
	for _, sequence := range slices.Concat(received...) {
		times[sequence]++
	}
	lost, doubled := 0, 0
	for _, n := range times {
		switch {
		case n == 0:
			lost++
		case n > 1:
			doubled++
		}
	}
	if lost != 0 || doubled != 0 {
		t.Errorf("of %d frames %d were lost and %d doubled", sent, lost, doubled)
	}
}

// A VM moves back and forth under load, as doc.go says. No QEMU: the frames
// that a stopped guest leaves in its ring are those it has not read.
func TestHandOverLosesNothing(t *testing.T) {
	for _, test := range []struct {
		name      string
		perSecond int
		size      int
	}{
		{"small frames", 20000, 60},
		{"full frames", 5000, 1514},
	} {
		t.Run(test.name, func(t *testing.T) { handOver(t, test.perSecond, test.size) })
	}
}

func handOver(t *testing.T, perSecond, size int) {
	const tunnel = 9
	l := newLab(t, 2, underlay4)
	source := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: Gate{Mode: Pass, Epoch: 1}})
	target := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: Gate{Mode: Closed, Epoch: 2}})
	must(t, l.hosts[0].OpenTunnel(tunnel, source))
	must(t, l.hosts[1].OpenTunnel(tunnel, target))
	must(t, target.Sacrifice())
	running := guestOf(source).run(t)
	world := l.wire(t, 0, "gwta").load(t, perSecond, size)
	waitCount(t, uint32(perSecond/10), source)

	must(t, target.SetGate(Gate{Mode: TunnelOnly, Epoch: 2}))
	atSource := running.end()
	left, err := source.Counters()
	must(t, err)
	waitCount(t, uint32(left.ToGuestPassed)+uint32(perSecond/50), source) // the ring fills
	start := time.Now()
	must(t, source.SetGate(Gate{Mode: Redirect, Epoch: 1, Tunnel: tunnel, Remote: l.underlay[1]}))
	flip := time.Since(start)
	drained, err := source.Drain(t.Context())
	must(t, err)
	t.Logf("gate flipped in %v, %d frames drained in %v", flip, drained, time.Since(start))
	if drained < perSecond/100 {
		t.Errorf("only %d frames drained: the ring was not full", drained)
	}
	must(t, target.SetGate(Gate{Mode: Settling, Epoch: 2}))
	running = guestOf(target).run(t)
	redirected := func() uint64 {
		counters, err := source.Counters()
		must(t, err)
		return counters.ToGuestRedirected
	}
	waitFor(t, "traffic by the tunnel", func() bool { return redirected() > uint64(perSecond/10) })
	sent := world.end()
	waitCount(t, uint32(redirected()), target)
	must(t, target.WaitEmpty(t.Context()))
	checkOnce(t, sent, atSource, running.end())
}

// The target is given up when frames already wait there: they come back.
func TestAbortBringsFramesBack(t *testing.T) {
	const tunnel = 9
	l := newLab(t, 2, underlay4)
	source := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: Gate{Mode: Pass, Epoch: 1}})
	target := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: Gate{Mode: TunnelOnly, Epoch: 2}})
	must(t, l.hosts[0].OpenTunnel(tunnel, source))
	must(t, l.hosts[1].OpenTunnel(tunnel, target))
	world := l.wire(t, 0, "gwta").load(t, 5000, 200)
	waitCount(t, 100, source)
	must(t, source.SetGate(Gate{Mode: Redirect, Epoch: 1, Tunnel: tunnel, Remote: l.underlay[1]}))
	_, err := source.Drain(t.Context())
	must(t, err)
	waitCount(t, 300, target)

	must(t, source.SetGate(Gate{Mode: Pass, Epoch: 1}))
	running := guestOf(source).run(t)
	must(t, target.SetGate(Gate{Mode: Returning, Epoch: 2, Tunnel: tunnel, Remote: l.underlay[0]}))
	back, err := target.Drain(t.Context())
	must(t, err)
	if back < 300 {
		t.Errorf("%d frames came back, at least 300 waited", back)
	}
	sent := world.end()
	must(t, source.WaitEmpty(t.Context()))
	checkOnce(t, sent, running.end())
}

// Both gates redirect to each other: a frame goes over once and no further.
func TestTunnelDoesNotLoop(t *testing.T) {
	l := newLab(t, 2, underlay4)
	a := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: redirectTo(l.underlay[1], 9)})
	b := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: redirectTo(l.underlay[0], 9)})
	must(t, l.hosts[0].OpenTunnel(9, a))
	must(t, l.hosts[1].OpenTunnel(9, b))
	l.wire(t, 0, "gwta").send(t, numbered(mac(1), mac(9), 1, 60))
	waitFor(t, "the frame stopped", func() bool {
		counters, err := b.Counters()
		must(t, err)
		return counters.ToGuestDropped == 1
	})
	counters, err := a.Counters()
	must(t, err)
	if counters.ToGuestRedirected != 1 || counters.ToGuestDropped != 0 {
		t.Errorf("the first gate counted %+v, want one frame redirected", counters)
	}
}

// A frame follows a VM that has moved twice, and two tunnels that lead to each
// other wear it out.
func TestTunnelsChain(t *testing.T) {
	l := newLab(t, 3, underlay4)
	a := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: redirectTo(l.underlay[1], 1)})
	b := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Gate: redirectTo(l.underlay[2], 2)})
	c := l.tap(t, 2, TapConfig{Name: "gwtc", MAC: mac(1), Gate: gate(Settling)})
	must(t, l.hosts[1].OpenTunnel(1, b))
	must(t, l.hosts[2].OpenTunnel(2, c))
	w := l.wire(t, 0, "gwta")
	w.send(t, numbered(mac(1), mac(9), 1, 1514))
	guestOf(c).expect(t, 1)

	must(t, l.hosts[0].OpenTunnel(3, a))
	must(t, c.SetGate(redirectTo(l.underlay[0], 3)))
	w.send(t, numbered(mac(1), mac(9), 2, 60))
	waitFor(t, "the loop ended", func() bool {
		dropped := uint64(0)
		for _, tap := range []*Tap{a, b, c} {
			counters, err := tap.Counters()
			must(t, err)
			dropped += counters.ToGuestDropped
		}
		return dropped == 1
	})
}

func TestDrainNeedsRedirect(t *testing.T) {
	l := newLab(t, 1, underlay4)
	tap := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Pass)})
	if _, err := tap.Drain(t.Context()); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("Drain of a tap that passes: %v, want conflict", err)
	}
}

func TestWaitEmptyEndsWithContext(t *testing.T) {
	l := newLab(t, 1, underlay4)
	tap := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Gate: gate(Pass)})
	must(t, tap.WaitEmpty(t.Context()))
	l.wire(t, 0, "gwta").send(t, numbered(mac(1), mac(9), 1, 60))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tap.WaitEmpty(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("WaitEmpty of a full tap: %v, want canceled", err)
	}
}

// The dummy frame gets past a closed gate, with one queue and with two.
func TestSacrifice(t *testing.T) {
	for _, queues := range []int{1, 2} {
		l := newLab(t, 1, underlay4)
		tap := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Queues: queues, Gate: gate(Closed)})
		must(t, tap.Sacrifice())
		for i, fd := range tap.FDs() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if frame := (guest{fd: fd}).receive(ctx, t); frame == nil || slices.Equal(frame[:6], mac(1)) {
				t.Errorf("queue %d of %d got %x", i, queues, frame)
			}
			cancel()
		}
	}
}

// Two queues, filled by several flows, are drained both.
func TestDrainEveryQueue(t *testing.T) {
	l := newLab(t, 2, underlay4)
	source := l.tap(t, 0, TapConfig{Name: "gwta", MAC: mac(1), Queues: 2, Gate: gate(Pass)})
	target := l.tap(t, 1, TapConfig{Name: "gwtb", MAC: mac(1), Queues: 2, Gate: gate(TunnelOnly)})
	must(t, l.hosts[1].OpenTunnel(9, target))
	const flows = 32
	w := l.wire(t, 0, "gwta")
	for flow := range uint16(flows) {
		w.send(t, dummyFrame(flow)[vnetHeader:])
	}
	// QEMU makes the header longer for guests that merge receive buffers.
	must(t, unix.IoctlSetPointerInt(source.FDs()[0], unix.TUNSETVNETHDRSZ, 12))
	must(t, source.SetGate(redirectTo(l.underlay[1], 9)))
	if frames, err := source.Drain(t.Context()); err != nil || frames != flows {
		t.Errorf("drained %d frames (%v), want %d", frames, err, flows)
	}
	waitCount(t, flows, target)
	total := 0
	for i, fd := range target.FDs() {
		ended, cancel := context.WithTimeout(t.Context(), 0)
		n := 0
		for (guest{fd: fd}).receive(ended, t) != nil {
			n++
		}
		cancel()
		if n == 0 {
			t.Errorf("queue %d got nothing of %d flows", i, flows)
		}
		total += n
	}
	if total != flows {
		t.Errorf("%d frames arrived, want %d", total, flows)
	}
}
