package agent

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/pagesample"
	"godwit.dev/godwit/internal/pki"
)

var testServer = pki.Identity{Kind: pki.Server, Name: "s1"}

// measureGuest asks a host to measure the VM of the tests.
func (h *testHost) measureGuest(caller pki.Identity, epoch fleet.Epoch, span time.Duration) (*godwitv1.MeasureGuestResponse, error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return h.asPeer(caller).Measure.MeasureGuest(ctx, &godwitv1.MeasureGuestRequest{Vm: testVM, Epoch: uint64(epoch), Uid: testUID, SpanMs: span.Milliseconds()})
}

// A guest is measured by its agent; those who ask at the same time get one answer. The
// next agent measures the instance that it has adopted.
func TestMeasureGuest(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Busy()))
	h.awaitGuest(1)
	answers := make([]*godwitv1.MeasureGuestResponse, 2)
	var asking sync.WaitGroup
	for i := range answers {
		asking.Go(func() {
			var err error
			if answers[i], err = h.measureGuest(testServer, 1, time.Second); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	got := answers[0]
	t.Log(got)
	if got.GetMethod() != "sample" || got.GetPages() != 16384 || got.GetPageBytes() != 4096 || got.GetSampledPages() < 256 || len(got.GetCurve()) != 5 ||
		got.GetZeroShare() < 0.8 || got.GetUntouchedShare() > got.GetZeroShare() || got.GetCpuUs() == 0 || got.GetSpanUs() < 1e6 {
		t.Errorf("measured %v", got)
	}
	for i, want := range []time.Duration{62500 * time.Microsecond, 125 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second} {
		if p := got.GetCurve()[i]; time.Duration(p.GetPeriodUs())*time.Microsecond < want/2 || p.GetWindows() == 0 || p.GetPages() > 500 {
			t.Errorf("point %d: %v", i, p)
		}
	}
	if other := answers[1]; !other.GetBegan().AsTime().Equal(got.GetBegan().AsTime()) {
		t.Errorf("one began at %v, another at %v", got.GetBegan().AsTime(), other.GetBegan().AsTime())
	}
	h.checkRunState(testVM, 1, "running")
	h.stop()
	h.start()
	later, err := h.measureGuest(testServer, 1, time.Second)
	if err != nil || !later.GetBegan().AsTime().After(got.GetBegan().AsTime()) {
		t.Errorf("the next agent: %v, %v", later, err)
	}
}

func TestMeasureGuestRefusals(t *testing.T) {
	m := newMove(t)
	for _, test := range []struct {
		what   string
		caller pki.Identity
		epoch  fleet.Epoch
		want   fleet.Code
	}{
		{"another host", pki.Identity{Kind: pki.Host, Name: "h2"}, 1, fleet.Denied},
		{"an admin", pki.Identity{Kind: pki.Admin, Name: "a"}, 1, fleet.Denied},
		{"another epoch", testServer, 7, fleet.NotFound},
	} {
		if _, err := m.source.measureGuest(test.caller, test.epoch, time.Second); fleet.CodeOf(err) != test.want {
			t.Errorf("%s: %v, want %s", test.what, err, test.want)
		}
	}
	m.fleet.onCommit(func(ctx context.Context, _ *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
		<-ctx.Done() // the switch stays undecided
		return nil, ctx.Err()
	})
	m.prepare()
	m.source.checkMeasureEnds("is copied", func(context.Context) error {
		m.source.sendCommand(m.copyCommand(0))
		return nil
	})
	m.source.awaitReport("stop", isStop)
	for host, epoch := range map[*testHost]fleet.Epoch{m.source: 1, m.target: 2} {
		if _, err := host.measureGuest(testServer, epoch, time.Second); fleet.CodeOf(err) != fleet.Conflict {
			t.Errorf("%s, in the switch: %v", host.name, err)
		}
	}
}

// A guest that stops while it is measured, or ends, is not measured to the end.
func TestMeasureGuestThatStops(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Busy()))
	h.checkMeasureEnds("stops", h.instance(testVM, 1).Stop)
	if _, err := h.measureGuest(testServer, 1, pagesample.SpanMax); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("of a guest that stands still: %v", err)
	}
	if _, err := h.instance(testVM, 1).Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.checkMeasureEnds("ends", h.instance(testVM, 1).Kill)
}

// checkMeasureEnds does something to a guest while it is measured.
func (h *testHost) checkMeasureEnds(what string, act func(ctx context.Context) error) {
	t := h.t
	t.Helper()
	failed, began := make(chan error, 1), time.Now()
	go func() {
		_, err := h.measureGuest(testServer, 1, pagesample.SpanMax)
		failed <- err
	}()
	waitFor(t, "a measuring", func() bool { return len(h.agent.measures) == 1 })
	if err := act(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; fleet.CodeOf(err) != fleet.Conflict || time.Since(began) > pagesample.SpanMax {
		t.Errorf("its guest %s: %v after %v", what, err, time.Since(began))
	}
}

// Without the right to read another process, the agent has QEMU measure.
func TestMeasureGuestByQEMU(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	instance := booting(t, f, 1, bootsector.Busy())
	instance.Spec.MemoryBytes = uint64(192 * fleet.MiB)
	h.run(instance)
	type result struct {
		answer *godwitv1.MeasureGuestResponse
		err    error
	}
	results := make(chan result)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its rights
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		err := unix.Capset(&header, &none[0])
		if err != nil {
			results <- result{err: err}
			return
		}
		m := h.agent.find(machineKey{testVM, 1})
		answer, err := m.measureGuest(t.Context(), m.held(), time.Second)
		results <- result{answer, err}
	}()
	got := <-results
	if a := got.answer; got.err != nil || a.GetMethod() != "qemu" || a.GetPages() != 49152 || len(a.GetCurve()) == 0 || a.GetSampledPages() != 0 {
		t.Errorf("%v, %v", got.answer, got.err)
	}
}

// The next measurement begins when the last one has cost no more than its share since.
func TestMeasuredIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s measured
		count, fail := 0, error(nil)
		measure := func(context.Context) (*godwitv1.MeasureGuestResponse, error) {
			count++
			began := time.Now()
			time.Sleep(4 * time.Second) // of virtual time
			return &godwitv1.MeasureGuestResponse{Began: timestamppb.New(began), Pages: uint64(count), CpuUs: 70_000}, fail
		}
		ask := func(ctx context.Context) uint64 {
			answer, err := s.share(ctx, time.Time{}, measure)
			if err != nil {
				return 0
			}
			return answer.GetPages()
		}
		hasty, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if got := ask(hasty); got != 0 { // goes away; the measuring goes on
			t.Errorf("who goes away gets %d", got)
		}
		for _, step := range []struct {
			after time.Duration
			want  uint64
		}{{0, 1}, {2990 * time.Millisecond, 1}, {20 * time.Millisecond, 2}, {2990 * time.Millisecond, 2}} {
			time.Sleep(step.after)
			if got := ask(t.Context()); got != step.want {
				t.Errorf("%v later it is measurement %d, want %d", step.after, got, step.want)
			}
		}
		time.Sleep(time.Minute)
		fail = context.DeadlineExceeded
		for range 2 {
			if got := ask(t.Context()); got != 0 {
				t.Errorf("one that failed is answered as %d", got)
			}
		}
		if count != 4 {
			t.Errorf("one that failed is kept: %d were made", count)
		}
		fail = nil
		first, err := s.share(t.Context(), time.Time{}, measure)
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.share(t.Context(), first.GetBegan().AsTime(), measure)
		if err != nil || second.GetPages() != first.GetPages()+1 || second.GetBegan().AsTime().Sub(first.GetBegan().AsTime()) < 7*time.Second {
			t.Errorf("who wants another gets %v after %v, %v", second, first, err)
		}
	})
	byQEMU := &godwitv1.MeasureGuestResponse{Method: measuredByQEMU, SpanUs: 4_000_000}
	if got := pauseAfter(byQEMU); got != 4*time.Second+measurePause {
		t.Errorf("after QEMU measured, %v", got)
	}
}

// measureLink has the first of two hosts measure the way to the second.
func (h *testHost) measureLink(caller pki.Identity, change func(*godwitv1.MeasureLinkRequest)) (*godwitv1.MeasureLinkResponse, error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	request := &godwitv1.MeasureLinkRequest{Host: "h2", Address: h.fleet.lab.Host("h2").Addr.String(), PeerPort: testPeerPort}
	change(request)
	return h.asPeer(caller).Measure.MeasureLink(ctx, request)
}

// A capped link is measured as what it is, and a free one is not held up for long.
func TestMeasureLink(t *testing.T) {
	f, hosts := newFleet(t, "h1", "h2")
	as := func(*godwitv1.MeasureLinkRequest) {}
	free, err := hosts[0].measureLink(testServer, as)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("free: %.0f MB/s, %d bytes in %d µs", free.GetBytesPerSecond()/1e6, free.GetBytes(), free.GetTookUs())
	if free.GetBytes() == 0 || free.GetBytes() > probeBytes || free.GetBytesPerSecond() < 10e6 {
		t.Errorf("free: %v", free)
	}
	for _, rate := range []float64{5e6, 12.5e6, 25e6} {
		if err := f.lab.Cap("h1", fleet.BytesPerSecond(rate)); err != nil {
			t.Fatal(err)
		}
		got, err := hosts[0].measureLink(testServer, as)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("capped at %.1f MB/s: %.2f MB/s, %d bytes in %d µs", rate/1e6, got.GetBytesPerSecond()/1e6, got.GetBytes(), got.GetTookUs())
		// A busy machine reads late what came in time.
		if got.GetBytesPerSecond() > rate*1.3 || got.GetBytesPerSecond() < rate*0.5 || float64(got.GetBytes()) > rate*0.4 {
			t.Errorf("capped at %.0f: %v", rate, got)
		}
	}
}

func TestMeasureLinkRefusals(t *testing.T) {
	_, hosts := newFleet(t, "h1", "h2")
	for _, test := range []struct {
		what   string
		caller pki.Identity
		change func(*godwitv1.MeasureLinkRequest)
		want   fleet.Code
	}{
		{"asked by a host", pki.Identity{Kind: pki.Host, Name: "h2"}, func(*godwitv1.MeasureLinkRequest) {}, fleet.Denied},
		{"no address", testServer, func(r *godwitv1.MeasureLinkRequest) { r.Address = "h2" }, fleet.Invalid},
		{"no name", testServer, func(r *godwitv1.MeasureLinkRequest) { r.Host = "" }, fleet.Invalid},
		{"no port", testServer, func(r *godwitv1.MeasureLinkRequest) { r.PeerPort = 0 }, fleet.Invalid},
		{"no such port", testServer, func(r *godwitv1.MeasureLinkRequest) { r.PeerPort = 1 << 16 }, fleet.Invalid},
		{"nobody there", testServer, func(r *godwitv1.MeasureLinkRequest) { r.PeerPort = 9 }, fleet.Unavailable},
		{"another one there", testServer, func(r *godwitv1.MeasureLinkRequest) { r.Host = "h3" }, fleet.Unavailable},
	} {
		if _, err := hosts[0].measureLink(test.caller, test.change); fleet.CodeOf(err) != test.want {
			t.Errorf("%s: %v, want %s", test.what, err, test.want)
		}
	}
	// A target takes from hosts only, and from a few at once.
	probe := func(caller pki.Identity) error {
		stream, err := hosts[1].asPeer(caller).ProbeLink(t.Context())
		if err != nil {
			return err
		}
		_, err = stream.CloseAndReceive()
		return err
	}
	if err := probe(testServer); fleet.CodeOf(err) != fleet.Denied {
		t.Errorf("probed by a server: %v", err)
	}
	for range probesMax {
		hosts[1].agent.probes <- struct{}{}
	}
	if _, err := hosts[0].measureLink(testServer, func(*godwitv1.MeasureLinkRequest) {}); fleet.CodeOf(err) != fleet.Unavailable {
		t.Errorf("while others are at it: %v", err)
	}
	for range probesMax {
		<-hosts[1].agent.probes
	}
}

func TestProbeCounts(t *testing.T) {
	began := time.Now()
	feed := func(pieces int, bytes int, every time.Duration) *probe {
		p := newProbe(began)
		for i := 1; i <= pieces && !p.over(); i++ {
			p.take(began.Add(time.Duration(i)*every), bytes)
		}
		return p
	}
	for _, test := range []struct {
		what         string
		p            *probe
		rate         float64
		bytes, tookU int64
	}{
		{"nothing", feed(0, 0, 0), 0, 0, 0},
		{"empty pieces", feed(10, 0, time.Millisecond), 0, 0, 0},
		{"one piece", feed(1, 1000, time.Millisecond), 1e6, 1000, 1000},
		{"even, to the end of the time", feed(10000, 1000, 100*time.Microsecond), 1e7, 2000 * 1000, 200_000},
		{"fast, to the end of the bytes", feed(10000, probePiece, 10*time.Microsecond), probePiece * 1e5, probeBytes, 20480},
		{"late", feed(1, 1000, time.Second), 1000, 1000, 1_000_000},
	} {
		got := test.p.answer()
		if d := got.GetBytesPerSecond() - test.rate; d > test.rate/1e6 || -d > test.rate/1e6 || int64(got.GetBytes()) != test.bytes || got.GetTookUs() != test.tookU {
			t.Errorf("%s: %v, want rate %.0f, %d bytes in %d µs", test.what, got, test.rate, test.bytes, test.tookU)
		}
	}
	p := newProbe(began) // a burst of a megabyte, then 1 kB each ms
	p.take(began.Add(time.Millisecond), 1<<20)
	for i := 2; i <= 200; i++ {
		p.take(began.Add(time.Duration(i)*time.Millisecond), 1000)
	}
	if got := p.answer().GetBytesPerSecond(); got < 0.999e6 || got > 1.001e6 {
		t.Errorf("after a burst: %.0f bytes/s", got)
	}
}
