package pagesample

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// sigmas is how far a sample may be off: of 10⁸ right ones not one is.
const sigmas = 6

// checkShare holds a share that a sample shows against the real share of its pages,
// which is between two bounds.
func checkShare(t *testing.T, what string, got float64, n int, low, high float64) {
	t.Helper()
	margin := func(p float64) float64 { return (sigmas*math.Sqrt(float64(n)*p*(1-p)) + 1) / float64(n) }
	if got < low-margin(low) || got > high+margin(high) {
		t.Errorf("%s: %.4f of %d pages, want %.4f to %.4f, give or take %.4f", what, got, n, low, high, margin(high))
	}
}

// The child changes its memory between looks and stands still meanwhile, so that
// what each window has to show is known to the page.
func TestWindows(t *testing.T) {
	c := startChild(t, "private")
	const n = 4096
	s := newSampler(c.open(), n)
	between := []order{
		{Write: []int{3 * quarter, 1000}},
		{Write: []int{3*quarter + 500, 1000}}, // half of them again
		{},
		{Write: []int{100, 600}},             // was never touched
		{Drop: []int{3 * quarter, quarter}},  // is nowhere then: zero
		{Write: []int{quarter + 1, quarter}}, // a zero page that is present, as others
		{Drop: []int{quarter + 10, quarter}}, // and back
		{Drop: []int{0, 50}, Write: []int{}}, // was never touched
		{Write: []int{3 * quarter, childPages - 3*quarter}},
	}
	touched := make([][]bool, 1, len(between)+1) // by interval, as bits of pages
	if err := s.look(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for i, o := range between {
		c.tell(o)
		if err := s.look(t.Context(), i+1); err != nil {
			t.Fatal(err)
		}
		changed := make([]bool, childPages)
		for _, span := range [][]int{o.Write, o.Drop} {
			for page := 0; len(span) > 0 && page < span[1]; page++ {
				changed[span[0]+page] = true
			}
		}
		for page := range 50 {
			changed[page] = changed[page] && len(o.Drop) == 0
		}
		touched = append(touched, changed)
	}
	for from := range touched {
		for to := from + 1; to < len(touched); to++ {
			count := 0
			for page := range childPages {
				if slices.ContainsFunc(touched[from+1:to+1], func(one []bool) bool { return one[page] }) {
					count++
				}
			}
			p := float64(count) / childPages
			checkShare(t, window{from, to}.String(), s.share(window{from, to}), n, p, p)
		}
	}
}

// The sample may be all there is, and then nothing is off.
func TestAllPages(t *testing.T) {
	c := startChild(t, "private")
	s := newSampler(c.open(), childPages)
	if err := s.look(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	c.tell(order{Write: []int{7000, 321}})
	if err := s.look(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if got, want := s.share(window{0, 1}), 321.0/childPages; got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

// The child writes at a rate round a set, and stamps how far it is: what a window may
// show lies between what was written from the end of its first look to the begin of its
// last one, and from the begin to the end.
func TestRate(t *testing.T) {
	for _, test := range []struct {
		name      string
		rate, set int
	}{
		{"slow", 500, quarter}, {"fast, a small set", 20000, 200}, {"reaches its end", 4000, 1500}, {"fast, a large set", 30000, quarter},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := startChild(t, "private")
			memory := c.open()
			c.tell(order{Run: struct{ Rate, Set int }{test.rate, test.set}})
			const n = 4096
			s, planned := newSampler(memory, n), schedule(2*time.Second)
			if err := s.watch(t.Context(), planned, time.Hour); err != nil {
				t.Fatal(err)
			}
			stamps := c.halt()
			for _, period := range Periods {
				for _, w := range windowsOf(planned, period) {
					from, to := s.looks[w.from], s.looks[w.to]
					least := min(test.set, writtenBefore(stamps, to.began)-writtenAfter(stamps, from.ended))
					most := min(test.set, writtenAfter(stamps, to.ended)-writtenBefore(stamps, from.began))
					checkShare(t, w.String(), s.share(w), n, float64(max(least, 0))/childPages, float64(most)/childPages)
				}
			}
			for _, p := range s.curve(planned) {
				t.Logf("%v: %.0f pages ± %.0f between %d windows, sampling %.0f", p.Period, p.Pages, p.StdDev, p.Windows, p.SamplingError)
			}
		})
	}
}

func byTime(s stamp, at time.Time) int { return cmp.Compare(s.At, at.UnixNano()) }

// writtenBefore is what had certainly been written at a time, and writtenAfter what at
// most had.
func writtenBefore(stamps []stamp, at time.Time) int {
	i, _ := slices.BinarySearchFunc(stamps, at, byTime)
	if i == 0 {
		return 0
	}
	return stamps[i-1].Pages
}

func writtenAfter(stamps []stamp, at time.Time) int {
	i, _ := slices.BinarySearchFunc(stamps, at, byTime)
	return stamps[min(i, len(stamps)-1)].Pages
}

// Measure tells what there is, and allocates nothing in the process.
func TestMeasure(t *testing.T) {
	c := startChild(t, "private")
	memory := c.open()
	before := resident(t, memory)
	r, err := Measure(t.Context(), memory, Plan{Span: SpanMin, CPUMax: time.Hour, Pages: 4096})
	if err != nil {
		t.Fatal(err)
	}
	if after := resident(t, memory); before != 3*quarter || after != before {
		t.Errorf("%d pages were present, and %d are, want %d", before, after, 3*quarter)
	}
	t.Logf("%+v", r)
	checkShare(t, "untouched", r.Untouched, r.Sampled, 0.25, 0.25)
	checkShare(t, "zero", r.Zero, r.Sampled, 0.5, 0.5)
	checkShare(t, "compressed", r.Compressed, compressedPages, 0.5, 0.51)
	if r.Pages != childPages || r.Sampled != 4096 || r.PageBytes != pageSize || r.Swapped != 0 {
		t.Errorf("%d of %d pages, %v swapped", r.Sampled, r.Pages, r.Swapped)
	}
	if r.Span < SpanMin || r.CPU <= 0 || r.CPU > r.Span {
		t.Errorf("took %v and %v of a processor", r.Span, r.CPU)
	}
	for _, p := range r.Curve {
		if p.Pages != 0 || p.StdDev != 0 {
			t.Errorf("a child that stands still: %+v", p)
		}
	}
	if len(r.Curve) != 5 {
		t.Errorf("%d points in %v", len(r.Curve), r.Span)
	}
}

// A sample that would cost too much is made smaller after the first look, and stays
// a uniform one.
func TestBudget(t *testing.T) {
	c := startChild(t, "private")
	r, err := Measure(t.Context(), c.open(), Plan{Span: SpanMin, Pages: childPages})
	if err != nil {
		t.Fatal(err)
	}
	if r.Sampled != samplePagesMin {
		t.Errorf("a budget of nothing leaves %d pages", r.Sampled)
	}
	s := newSampler(&Memory{pages: childPages}, 4000)
	s.shrink(time.Second, 2*time.Second)
	if len(s.pages) != 2000 {
		t.Errorf("half the budget leaves %d of 4000 pages", len(s.pages))
	}
	first := 0
	for _, page := range s.pages {
		if page < childPages/2 {
			first++
		}
	}
	checkShare(t, "of the first half", float64(first)/2000, 2000, 0.5, 0.5)
}

func TestChoose(t *testing.T) {
	for _, n := range []int{0, 1, 1000, 4095, 4096} {
		pages := choose(4096, n)
		slices.Sort(pages)
		if len(slices.Compact(pages)) != n || n > 0 && pages[n-1] >= 4096 {
			t.Errorf("%d of 4096: %v", n, pages)
		}
	}
	// Each page as likely as any other.
	counts := make([]int, 10)
	for range 10000 {
		for _, page := range choose(10, 3) {
			counts[page]++
		}
	}
	for page, count := range counts {
		checkShare(t, fmt.Sprintf("page %d", page), float64(count)/10000, 10000, 0.3, 0.3)
	}
}

func TestSchedule(t *testing.T) {
	for _, test := range []struct {
		span    time.Duration
		looks   int
		windows []int // by period
	}{
		{time.Second, 6, []int{2, 2, 2, 2, 1, 0, 0}},
		{4 * time.Second, 15, []int{4, 4, 4, 8, 7, 5, 1}},
		{8 * time.Second, 29, []int{8, 8, 8, 16, 15, 13, 9}},
	} {
		looks := schedule(test.span)
		if len(looks) != test.looks || len(looks) > maxLooks || !slices.IsSorted(looks) || looks[len(looks)-1] != test.span {
			t.Errorf("%v: looks at %v", test.span, looks)
		}
		for i, period := range Periods {
			windows := windowsOf(looks, period)
			if len(windows) < test.windows[i] {
				t.Errorf("%v: %d windows of %v", test.span, len(windows), period)
			}
		}
	}
	for given, want := range map[time.Duration]time.Duration{0: SpanMin, time.Millisecond: SpanMin, 1500 * time.Millisecond: 2 * time.Second, time.Hour: SpanMax, math.MaxInt64: SpanMax, -1: SpanMin} {
		if got := SpanOf(given); got != want {
			t.Errorf("a span of %v is %v, want %v", given, got, want)
		}
	}
	for pages, want := range map[uint64]int{100: 100, 16384: 2048, 4 << 20: 2048, 8 << 20: 4096, 1 << 40: 8192} {
		if got := (Plan{}).sample(pages); got != want {
			t.Errorf("of %d pages %d are looked at, want %d", pages, got, want)
		}
	}
}

func TestCompress(t *testing.T) {
	noise := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{2})
	_, _ = random.Read(noise)
	for _, test := range []struct {
		what      string
		data      []byte
		low, high float64
	}{
		{"nothing", nil, 0, 0}, {"noise", noise, 0.999, 1.001}, {"a text again and again", slices.Repeat([]byte(alike), 10000), 0.00001, 0.01},
	} {
		if got := Compress(test.data); got < test.low || got > test.high {
			t.Errorf("%s: %v, want %v to %v", test.what, got, test.low, test.high)
		}
	}
}

func (w window) String() string { return fmt.Sprintf("from look %d to look %d", w.from, w.to) }

// 10 pages of a sample of 100 change in the first half second and 35 in the second, of
// them 10 in both; one comes back from swap, and nobody knows of a change.
func TestCurve(t *testing.T) {
	s := newSampler(&Memory{pages: 1000}, 100)
	planned := []time.Duration{0, time.Second / 2, time.Second}
	began := time.Now()
	for i, at := range planned {
		at += time.Duration(i) * 10 * time.Millisecond // late
		s.looks = append(s.looks, look{began.Add(at), began.Add(at + 4*time.Millisecond)})
		for n := range s.pages {
			hash := uint64(0)
			if n < 10 && i > 0 {
				hash++
			}
			if n >= 5 && n < 35 && i > 1 {
				hash += 2
			}
			if n != 50 || i == 2 {
				s.note(i, n, hash)
			}
		}
	}
	for n := range s.pages[:5] { // and only those again
		s.changed[n] |= 1 << 2
	}
	const half, all = 0.225, 0.35 // (10+35)/2 and 35 of 100
	want := []Point{
		{Period: 510 * time.Millisecond, Pages: 225, StdDev: 125 * math.Sqrt2, Windows: 2, SamplingError: 1000 * math.Sqrt(half*(1-half)/100*0.9)},
		{Period: 1020 * time.Millisecond, Pages: 350, Windows: 1, SamplingError: 1000 * math.Sqrt(all*(1-all)/100*0.9)},
	}
	got := s.curve(planned)
	if len(got) != len(want) {
		t.Fatalf("%d points: %+v", len(got), got)
	}
	for i, p := range got {
		w := want[i]
		off := max(math.Abs(p.Pages-w.Pages), math.Abs(p.StdDev-w.StdDev), math.Abs(p.SamplingError-w.SamplingError))
		if p.Period != w.Period || p.Windows != w.Windows || off > 1e-6 {
			t.Errorf("%+v, want %+v", p, w)
		}
	}
}
