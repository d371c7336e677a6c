package load

import (
	"bytes"
	"compress/flate"
	"math"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

const (
	mib = 1 << 20
	// pagesPerMiB is the number of units of a MiB.
	pagesPerMiB = mib / witness.PageSize
	// tick is how often the tests ask, as a guest does.
	tick = 10 * time.Millisecond
)

func begin(l witness.Load) *Schedule {
	noise := witness.Noise(1)
	return New(l, 0, &noise)
}

// done asks until a time, and gives the units that were due since it was asked before.
func done(s *Schedule, until time.Duration) (units int) {
	for now := s.last + tick; now <= until; now += tick {
		due, _ := s.Due(now)
		units += due
	}
	return units
}

func TestIdle(t *testing.T) {
	if n := done(begin(witness.Load{SetMiB: 5}), time.Minute); n != 0 {
		t.Errorf("%d units of nothing", n)
	}
}

func TestRate(t *testing.T) {
	for _, rate := range []int64{1, witness.PageSize - 1, 3 * mib, 7_500_000, 1 << 32} {
		l := witness.Load{BytesPerSecond: rate, SetMiB: 1}
		want := float64(rate) * 100 / witness.PageSize
		if n := float64(done(begin(l), 100*time.Second)); math.Abs(n-want) > 1.01 {
			t.Errorf("%d bytes/s: %v pages in 100 s, want %v", rate, n, want)
		}
	}
}

// Time in which nobody asked is not made up for.
func TestStoodStill(t *testing.T) {
	s := begin(witness.Load{BytesPerSecond: 100 * mib, SetMiB: 1})
	n, _ := s.Due(time.Hour)
	if want := 100 * pagesPerMiB * int(CatchUp) / int(time.Second); n != want {
		t.Errorf("%d units after an hour, want %d", n, want)
	}
}

func TestBursts(t *testing.T) {
	s := begin(witness.Load{BytesPerSecond: 10 * mib, SetMiB: 1, On: 250 * time.Millisecond, Off: 750 * time.Millisecond})
	for second := range 100 {
		at := time.Duration(second) * time.Second
		on, off := done(s, at+250*time.Millisecond), done(s, at+time.Second)
		if on < 10*pagesPerMiB/4-1 || on > 10*pagesPerMiB/4+1 || off > 1 {
			t.Errorf("second %d: %d units in the burst, %d after it", second, on, off)
		}
	}
	s = begin(witness.Load{BytesPerSecond: witness.Unthrottled, SetMiB: 1, On: 2, Off: 1})
	for now, want := range []bool{true, true, false, true, true, false} {
		if n, again := s.Due(time.Duration(now)); again != want || n > 0 != want {
			t.Errorf("unthrottled at %d: %d units, again: %v", now, n, again)
		}
	}
}

func TestPhases(t *testing.T) {
	s := begin(witness.Load{
		BytesPerSecond: mib, SetMiB: 1, For: time.Second, Then: &witness.Load{
			BytesPerSecond: 8 * mib, SetMiB: 2, Pattern: witness.Sequential, On: time.Second, Off: time.Second,
			For: 3 * time.Second, Then: &witness.Load{},
		}})
	for i, want := range []struct {
		until time.Duration
		units int
	}{{time.Second - tick, pagesPerMiB * 99 / 100}, {4*time.Second - tick, 16 * pagesPerMiB * 199 / 200}, {time.Minute, 0}} {
		if i == 1 {
			done(s, time.Second)
			if unit := s.Next(); unit != 0 || s.Load().SetMiB != 2 {
				t.Errorf("the second phase begins with unit %d of %+v", unit, s.Load())
			}
		}
		if n := done(s, want.until); n < want.units-1 || n > want.units+1 {
			t.Errorf("phase %d: %d units, want %d", i, n, want.units)
		}
	}
	if number, begun := s.Phase(); number != 2 || begun != 4*time.Second {
		t.Errorf("at the end it is phase %d, since %v", number, begun)
	}
	// Whoever comes late is in the phase of now.
	s = begin(witness.Load{BytesPerSecond: mib, SetMiB: 1, For: 1, Then: &witness.Load{SetMiB: 1, For: 1, Then: &witness.Load{}}})
	if n, _ := s.Due(time.Hour); n != 0 {
		t.Errorf("%d units of phases that are over", n)
	}
}

// counts gives how often each unit is written.
func counts(l witness.Load, writes int) []int {
	s := begin(l)
	of := make([]int, l.SetMiB*pagesPerMiB)
	for range writes {
		of[s.Next()]++
	}
	return of
}

func TestSequentialSweeps(t *testing.T) {
	for unit, n := range counts(witness.Load{SetMiB: 1, Pattern: witness.Sequential}, 3*pagesPerMiB) {
		if n != 3 {
			t.Fatalf("unit %d was written %d times in three sweeps", unit, n)
		}
	}
}

func TestUniform(t *testing.T) {
	const each = 1000
	for unit, n := range counts(witness.Load{SetMiB: 1}, each*pagesPerMiB) {
		if math.Abs(float64(n-each)) > 6*math.Sqrt(each) {
			t.Errorf("unit %d was written %d times, want about %d", unit, n, each)
		}
	}
}

func TestHot(t *testing.T) {
	const writes = 1_000_000
	hot := 0
	for _, n := range counts(witness.Load{SetMiB: 10, Pattern: witness.Hot}, writes)[:pagesPerMiB] {
		hot += n
	}
	if share := float64(hot) / writes; math.Abs(share-0.91) > 0.01 {
		t.Errorf("a tenth of the set got %v of the writes", share)
	}
}

func TestZipf(t *testing.T) {
	const writes = 1_000_000
	for _, exponent := range []float64{0.5, 0.99, 1, 1.5, witness.MaxExponent} {
		of := counts(witness.Load{SetMiB: 1, Pattern: witness.Zipf, Exponent: exponent}, writes)
		sum := 0.0
		for i := range of {
			sum += math.Pow(float64(i+1), -exponent)
		}
		for i, n := range of {
			want := writes / sum * math.Pow(float64(i+1), -exponent)
			if math.Abs(float64(n)-want) > 6*math.Sqrt(want)+1 {
				t.Errorf("exponent %v: unit %d was written %d times, want about %.1f", exponent, i, n, want)
			}
		}
	}
}

// A page can be compressed to about the part of it that is not zeros, and to no less.
func TestFill(t *testing.T) {
	noise := witness.Noise(1)
	for _, zeros := range []int{0, 25, 50, 99, 100} {
		page := bytes.Repeat([]byte{7}, witness.PageSize)
		Fill(page, zeros, &noise)
		var out bytes.Buffer
		w, err := flate.NewWriter(&out, flate.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(page); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		random := witness.PageSize * (100 - zeros) / 100
		if out.Len() < random || out.Len() > random+100 {
			t.Errorf("%d percent of zeros: compressed to %d bytes", zeros, out.Len())
		}
		if empty := len(bytes.Trim(page, "\x00")) == 0; empty != (zeros == 100) {
			t.Errorf("%d percent of zeros: all of it is zeros: %v", zeros, empty)
		}
	}
}

// FuzzSchedule: no valid load makes work out of its set, or more than its rate.
func FuzzSchedule(f *testing.F) {
	f.Add(`{"bytes_per_second":5000000,"set_mib":2,"pattern":"zipf","exponent":4,"on_ns":1,"off_ns":2}`, int64(time.Second))
	f.Add(`{"kind":"compile","bytes_per_second":-1,"for_ns":3,"then":{"kind":"compile"}}`, int64(2))
	f.Add(`{"bytes_per_second":68719476736,"set_mib":1,"for_ns":86400000000000,"then":{"set_mib":1}}`, int64(math.MaxInt64))
	const askings = 20
	f.Fuzz(func(t *testing.T, text string, until int64) {
		l, err := witness.ParseLoad(text)
		if err != nil || until < 0 || l.Set() > 64*mib {
			return
		}
		s := begin(l)
		for i := range time.Duration(askings) {
			n, again := s.Due(time.Duration(until/askings) * i)
			of := s.Load()
			if limit := float64(of.BytesPerSecond) * CatchUp.Seconds() / witness.PageSize; !again && float64(n) > limit+1 {
				t.Errorf("%d units of %+v are due at once", n, of)
			}
			if unit := s.Next(); unit < 0 || unit > 0 && unit >= of.SetMiB*pagesPerMiB {
				t.Errorf("unit %d is not of %+v", unit, of)
			}
		}
	})
}
