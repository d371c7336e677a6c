package qemu_test

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/lab/witness"
	"godwit.dev/godwit/internal/pagesample"
	"godwit.dev/godwit/internal/qemu"
)

// openMemory gives the guest's memory as this program can read it.
func openMemory(t *testing.T, i *qemu.Instance) *pagesample.Memory {
	t.Helper()
	at, err := i.MemoryAddress(within(t))
	if err != nil {
		t.Fatal(err)
	}
	memory, err := pagesample.Open(i.PID(), at, uint64(i.Config().Memory))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { memory.Close() })
	return memory
}

// Every machine's memory is found, that of a large one, too, which the guest sees in
// two pieces, and all of it is where it is said to be.
func TestMemoryAddress(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		for _, machine := range []string{"pc-i440fx-7.2", "pc-q35-7.2"} {
			for _, size := range []fleet.Bytes{64 * fleet.MiB, 5 * fleet.GiB} { // untouched, it takes no room
				c := config(t, binary)
				c.Machine, c.Memory = machine, size
				r, err := pagesample.Measure(t.Context(), openMemory(t, start(t, c)), pagesample.Plan{Span: time.Second, CPUMax: time.Hour})
				if err != nil || r.Pages != uint64(size/4096) || r.Untouched < 0.95 {
					t.Errorf("%s with %v: %+v, %v", machine, size, r, err)
				}
			}
		}
	})
}

// Filling has filled 32 MiB of its 64.
func TestMemoryIsTheGuests(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		source, _, _ := guestPair(t, binary, bootsector.Filling())
		r, err := pagesample.Measure(t.Context(), openMemory(t, source), pagesample.Plan{Span: time.Second, CPUMax: time.Hour, Pages: 16384})
		if err != nil || r.Zero < 0.45 || r.Zero > 0.5 {
			t.Errorf("a share of %v is zero, %v", r.Zero, err)
		}
	})
}

// reports gives what the guest has said on its console, one a second.
func reports(t *testing.T, c qemu.Config) (list []witness.Report) {
	t.Helper()
	said, err := os.ReadFile(qemu.ConsoleLog(c.Dir))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(said) {
		var one witness.Report
		if json.Unmarshal(line, &one) == nil && one.Kind == witness.KindReport {
			list = append(list, one)
		}
	}
	return list
}

func awaitMoreReports(t *testing.T, c qemu.Config) []witness.Report {
	t.Helper()
	before := len(reports(t, c))
	poll(t, "more reports", patience, func() bool { return len(reports(t, c)) >= before+2 })
	return reports(t, c)
}

// rateOf is how many pages a second the guest wrote from one report to another.
func rateOf(from, to witness.Report) float64 {
	return float64(to.Load.Pages-from.Load.Pages) / (float64(to.Clock-from.Clock) / 1e9)
}

// background is how many pages at most the guest's system changes by itself.
const background = 600

// The curve of a guest that changes its memory at a known rate is near what the
// guest itself says of how much it wrote, and the guest runs on undisturbed. An
// emulated guest on a busy machine does not write evenly: a window may have half of
// its rate or twice.
func TestGuestsCurve(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		for name, load := range map[string]witness.Load{
			"slow": {BytesPerSecond: 2 << 20, SetMiB: 32}, "fast, a small set in turn": {BytesPerSecond: 16 << 20, SetMiB: 8, Pattern: witness.Sequential},
			"fast": {BytesPerSecond: 12 << 20, SetMiB: 64},
		} {
			t.Run(name, func(t *testing.T) { checkCurve(t, binary, load) })
		}
	})
}

func checkCurve(t *testing.T, binary string, load witness.Load) {
	c := linux(t, config(t, binary))
	c.Cmdline = witness.Args{Load: load}.CommandLine()
	i := start(t, c)
	resume(t, i)
	awaitBoot(t, c)
	earlier := awaitMoreReports(t, c)
	events := subscribe(t, i)
	r, err := pagesample.Measure(t.Context(), openMemory(t, i), pagesample.Plan{Span: 4 * time.Second, CPUMax: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	after := awaitMoreReports(t, c)
	select {
	case event := <-events.Events():
		t.Errorf("the guest was disturbed: %+v", event)
	default:
	}
	status(t, i, "running")
	before, last := earlier[len(earlier)-1], after[len(after)-1]
	perSecond := rateOf(before, last)
	t.Logf("%.0f pages/s before, %.0f since; longest pause %v before, %v since; cost %v of %v for %d pages; untouched %.3f, zero %.3f, compressed %.3f",
		rateOf(earlier[0], before), perSecond, time.Duration(before.LongestPause), time.Duration(last.LongestPause),
		r.CPU, r.Span, r.Sampled, r.Untouched, r.Zero, r.Compressed)
	for _, p := range r.Curve {
		t.Logf("%v: %.0f ± %.0f pages in %d windows, sampling %.0f", p.Period, p.Pages, p.StdDev, p.Windows, p.SamplingError)
		writes := perSecond * p.Period.Seconds()
		least, most := distinct(load, writes/2), distinct(load, writes*2)+background
		margin := func(pages float64) float64 {
			return 6*math.Sqrt(pages*float64(r.Pages)/float64(r.Sampled)) + float64(r.Pages)/float64(r.Sampled)
		}
		if p.Pages < least-margin(least) || p.Pages > most+margin(most) {
			t.Errorf("%v: %.0f pages, want %.0f to %.0f", p.Period, p.Pages, least-margin(least), most+margin(most))
		}
	}
}

// distinct is how many pages of the load's set so many writes change.
func distinct(load witness.Load, writes float64) float64 {
	set := float64(load.SetMiB) * 256
	if load.Pattern == witness.Sequential {
		return min(writes, set)
	}
	return set * (1 - math.Exp(-writes/set))
}

// QEMU's own samples say about the same, where they are taken.
func TestDirtyRates(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		c := linux(t, config(t, binary))
		c.Cmdline = witness.Args{Load: witness.Load{BytesPerSecond: int64(16) << 20, SetMiB: 64}}.CommandLine()
		i := start(t, c)
		resume(t, i)
		awaitBoot(t, c)
		first := awaitMoreReports(t, c)
		rates, err := i.DirtyRates(within(t), 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		last := awaitMoreReports(t, c)
		writes := rateOf(first[len(first)-1], last[len(last)-1]) * 4096 / float64(fleet.MiB)
		t.Logf("%.1f MiB/s written, seen: %v", writes, rates)
		for _, one := range rates {
			if rate := float64(one.Rate) / float64(fleet.MiB); rate < writes/4 || rate > writes*2+10 {
				t.Errorf("in %v %.1f MiB/s, the guest writes %.1f", one.Period, rate, writes)
			}
		}
		small := start(t, config(t, binary))
		_, err = small.DirtyRates(within(t), time.Second)
		code(t, err, fleet.Unsupported)
	})
}

// A measuring ends with its context, and finds nothing of an instance that has ended.
func TestMemoryOfAnEndedInstance(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		i := start(t, config(t, binary))
		memory := openMemory(t, i)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := pagesample.Measure(ctx, memory, pagesample.Plan{}); err != context.Canceled {
			t.Errorf("cancelled: %v", err)
		}
		if err := i.Kill(within(t)); err != nil {
			t.Fatal(err)
		}
		_, err := pagesample.Measure(t.Context(), memory, pagesample.Plan{})
		code(t, err, fleet.Conflict)
		if _, err := i.MemoryAddress(within(t)); err == nil {
			t.Error("an instance that has ended tells where its memory is")
		}
	})
}
