package pagesample

import (
	"context"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Result is what was seen.
type Result struct {
	Began     time.Time
	Span      time.Duration
	PageBytes int
	Pages     uint64  // of the whole range
	Sampled   int     // of them, for the curve
	Untouched float64 // share of the pages that are nowhere: never written, or given back
	Zero      float64 // share of the pages that are zero, with the untouched
	Swapped   float64 // share of the pages that are in swap, of which no more is known
	// Compressed is what is left of the bytes of the other pages, compressed as Compress
	// does; 0 if there are none.
	Compressed float64
	Curve      []Point // the shortest period first
	CPU        time.Duration
}

// look is when the sample was read.
type look struct{ began, ended time.Time }

// middle is the time that counts: a processor may be taken away within a look.
func (l look) middle() time.Time { return l.began.Add(l.ended.Sub(l.began) / 2) }

// Point tells how many distinct pages of the whole range change within a period.
type Point struct {
	Period  time.Duration // the mean of the windows, as they were
	Pages   float64       // the mean of the windows
	StdDev  float64       // in pages, between the windows; 0 if there is one
	Windows int
	// SamplingError is the standard error, in pages, by which a sample of this size is
	// off, the same way in all windows.
	SamplingError float64
}

// maxBatch is how many pages are read at once: few enough for a processor's cache.
const maxBatch = 64

// sampler measures once.
type sampler struct {
	memory  *Memory
	pages   []uint64 // of the sample, in no order
	hashes  []uint64 // what each had at the last look
	known   []bool   // it was read, or seen to be absent
	changed []uint64 // for each, bit i: between looks i-1 and i
	looks   []look

	seed   maphash.Seed
	zero   uint64 // hash of a zero page
	buffer []byte
	first  map[presence]int // of the first look
	zeros  int              // of its pages that were present
	others []byte           // of its pages, those that are to be compressed
}

// Measure looks at the memory for as long as the plan says. It holds the calling
// goroutine to one thread, whose time of the processor it counts. Conflict if the
// process ends, Unsupported if reading it is not allowed.
func Measure(ctx context.Context, memory *Memory, plan Plan) (Result, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begun := threadTime()
	s := newSampler(memory, plan.sample(memory.pages))
	result := Result{Began: time.Now(), PageBytes: pageSize, Pages: memory.pages}
	planned := schedule(SpanOf(plan.Span))
	if err := s.watch(ctx, planned, begun+plan.CPUMax); err != nil {
		return Result{}, err
	}
	all := float64(s.first[absent] + s.first[swapped] + s.first[present])
	result.Sampled = len(s.pages)
	result.Untouched, result.Swapped = float64(s.first[absent])/all, float64(s.first[swapped])/all
	result.Zero = float64(s.first[absent]+s.zeros) / all
	result.Span = s.looks[len(s.looks)-1].ended.Sub(s.looks[0].began)
	result.Compressed = Compress(s.others)
	result.Curve = s.curve(planned)
	result.CPU = threadTime() - begun
	return result, nil
}

// watch looks at the planned times, with so many pages that the thread's time may come
// to enough.
func (s *sampler) watch(ctx context.Context, planned []time.Duration, enough time.Duration) error {
	began := time.Now()
	for i, at := range planned {
		if err := waitUntil(ctx, began.Add(at)); err != nil {
			return err
		}
		before := threadTime()
		if err := s.look(ctx, i); err != nil {
			return err
		}
		if now := threadTime(); i == 0 {
			s.shrink(enough-now, time.Duration(len(planned)-1)*(now-before))
		}
	}
	return nil
}

func newSampler(memory *Memory, n int) *sampler {
	s := &sampler{
		memory: memory, pages: choose(memory.pages, n), hashes: make([]uint64, n), known: make([]bool, n), changed: make([]uint64, n),
		seed: maphash.MakeSeed(), buffer: make([]byte, maxBatch*pageSize), first: map[presence]int{},
	}
	s.zero = maphash.Bytes(s.seed, s.buffer[:pageSize])
	return s
}

// choose gives n of so many pages, each set of them as likely as any other, in random
// order (Floyd; Bentley, CACM 30(9), 1987).
func choose(pages uint64, n int) []uint64 {
	taken := make(map[uint64]bool, n)
	list := make([]uint64, 0, n)
	for limit := pages - uint64(n); limit < pages; limit++ {
		page := rand.Uint64N(limit + 1)
		if taken[page] {
			page = limit
		}
		taken[page] = true
		list = append(list, page)
	}
	rand.Shuffle(n, func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// shrink keeps so much of the sample that the looks to come, which would take so long,
// fit into what is left.
func (s *sampler) shrink(left, wanted time.Duration) {
	if wanted <= left {
		return
	}
	n := int(float64(len(s.pages)) * max(0, left.Seconds()) / wanted.Seconds())
	n = min(max(n, samplePagesMin), len(s.pages))
	s.pages, s.hashes, s.known, s.changed = s.pages[:n], s.hashes[:n], s.known[:n], s.changed[:n]
}

// look reads the sample for the i-th time.
func (s *sampler) look(ctx context.Context, i int) error {
	began := time.Now()
	batch := make([]int, 0, maxBatch)
	for n, page := range s.pages {
		where, err := s.memory.presence(page)
		if err != nil {
			return err
		}
		switch where {
		case present:
			batch = append(batch, n)
		case absent:
			s.note(i, n, s.zero)
		}
		if i == 0 {
			s.first[where]++
		}
		if len(batch) == maxBatch || n == len(s.pages)-1 {
			if err := s.take(i, batch); err != nil {
				return err
			}
			batch = batch[:0]
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
	}
	s.looks = append(s.looks, look{began, time.Now()})
	return nil
}

// take reads present pages and notes what they have.
func (s *sampler) take(i int, batch []int) error {
	if len(batch) == 0 {
		return nil
	}
	pages := make([]uint64, len(batch))
	for k, n := range batch {
		pages[k] = s.pages[n]
	}
	if err := s.memory.read(pages, s.buffer); err != nil {
		return err
	}
	for k, n := range batch {
		content := s.buffer[k*pageSize : (k+1)*pageSize]
		hash := maphash.Bytes(s.seed, content)
		s.note(i, n, hash)
		if i > 0 {
			continue
		}
		if hash == s.zero {
			s.zeros++
		} else if len(s.others) < compressedPages*pageSize {
			s.others = append(s.others, content...)
		}
	}
	return nil
}

// note holds what a page has now against what it had. One that was in swap before has
// not changed as far as anybody knows.
func (s *sampler) note(i, n int, hash uint64) {
	if s.known[n] && s.hashes[n] != hash {
		s.changed[n] |= 1 << i
	}
	s.hashes[n], s.known[n] = hash, true
}

// curve makes the points of what was noted.
func (s *sampler) curve(planned []time.Duration) (curve []Point) {
	n, all := float64(len(s.pages)), float64(s.memory.pages)
	for _, period := range Periods {
		windows := windowsOf(planned, period)
		if len(windows) == 0 {
			continue
		}
		var took time.Duration
		var shares []float64
		for _, w := range windows {
			took += s.looks[w.to].middle().Sub(s.looks[w.from].middle())
			shares = append(shares, s.share(w))
		}
		p, deviation := meanOf(shares)
		unseen := 1 - n/all // a sample of all pages is not off
		curve = append(curve, Point{
			Period: took / time.Duration(len(windows)), Pages: p * all, StdDev: deviation * all, Windows: len(windows),
			SamplingError: math.Sqrt(p*(1-p)/n*unseen) * all,
		})
	}
	return curve
}

// share of the sample that has changed in a window.
func (s *sampler) share(w window) float64 {
	bits, count := w.bits(), 0
	for _, changed := range s.changed {
		if changed&bits != 0 {
			count++
		}
	}
	return float64(count) / float64(len(s.changed))
}

// meanOf gives the mean and the standard deviation of a sample; that of one value is 0.
func meanOf(values []float64) (mean, deviation float64) {
	for _, value := range values {
		mean += value / float64(len(values))
	}
	if len(values) < 2 {
		return mean, 0
	}
	for _, value := range values {
		deviation += (value - mean) * (value - mean) / float64(len(values)-1)
	}
	return mean, math.Sqrt(deviation)
}

// threadTime is the time of the processor that this thread has had.
func threadTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		panic(err) // every Linux has that clock
	}
	return time.Duration(now.Nano())
}

func waitUntil(ctx context.Context, at time.Time) error {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-timer.C:
		return context.Cause(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
