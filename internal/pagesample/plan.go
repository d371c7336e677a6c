package pagesample

import (
	"slices"
	"time"
)

// Periods are how long windows are; those longer than the span are left out.
var Periods = []time.Duration{
	62500 * time.Microsecond, 125 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2 * time.Second, 4 * time.Second,
}

// What a Plan may ask for.
const (
	SpanMin = time.Second
	SpanMax = 8 * time.Second

	// samplePages is the sample of a memory of up to 16 GiB; above that one page stands
	// for 8 MiB, up to samplePagesMax. It is never made smaller than samplePagesMin.
	samplePages    = 2048
	samplePagesMax = 8192
	samplePagesMin = 256
	pagesPerSample = 2048
)

// Plan says how to measure.
type Plan struct {
	Span time.Duration // see SpanOf
	// CPUMax bounds the time of the processor that all of it takes.
	CPUMax time.Duration
	// Pages is the size of the sample; 0 chooses it by the size of the memory: 2048 to
	// 8192.
	Pages int
}

// SpanOf gives the nearest span that can be, rounded up: whole seconds from SpanMin to
// SpanMax.
func SpanOf(wanted time.Duration) time.Duration {
	wanted = min(max(wanted, SpanMin), SpanMax)
	return (wanted + time.Second - 1).Truncate(time.Second)
}

// sample is how many of the pages are looked at.
func (p Plan) sample(pages uint64) int {
	want := uint64(p.Pages)
	if want == 0 {
		want = min(max(pages/pagesPerSample, samplePages), samplePagesMax)
	}
	return int(min(want, pages))
}

// schedule gives the times of the looks, from the beginning on. Every other second
// begins with close ones, so that each period fits several times in 15 looks of 4 s;
// SpanMax needs 29, and maxLooks is how many intervals a page can remember.
func schedule(span time.Duration) []time.Duration {
	looks := []time.Duration{0}
	for second := time.Duration(0); second < span; second += time.Second {
		if second/time.Second%2 == 0 {
			for _, period := range Periods[:3] {
				looks = append(looks, second+period)
			}
		}
		looks = append(looks, second+time.Second/2, second+time.Second)
	}
	return looks
}

const maxLooks = 64

// window is from one look to another.
type window struct{ from, to int }

// bits gives those of the intervals within the window: interval i ends with look i.
func (w window) bits() (bits uint64) {
	for i := w.from + 1; i <= w.to; i++ {
		bits |= 1 << i
	}
	return bits
}

// windowsOf gives all windows of a length, which may overlap.
func windowsOf(looks []time.Duration, period time.Duration) (windows []window) {
	for from, begin := range looks {
		if to, found := slices.BinarySearch(looks, begin+period); found {
			windows = append(windows, window{from, to})
		}
	}
	return windows
}
