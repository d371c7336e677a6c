// Package load decides what a guest does under a witness.Load, and when: how many
// units of work are due at a time, which of the set each of them is for, and what is
// written. It knows no clock; whoever does the work asks it often, with the time.
package load

import (
	"math"
	"sort"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

const (
	// CatchUp bounds the time whose work is done at one asking, so that a machine that
	// stood still does not make up for it in one go.
	CatchUp = 40 * time.Millisecond
	// batch is how many units of an unthrottled load are done before the next asking.
	batch = 16
)

// Schedule is a load in progress. It is not safe for concurrent use.
type Schedule struct {
	phases []phase // the one of now first
	number int
	begun  time.Duration // of the phase of now
	last   time.Duration // when it was asked last
	owed   float64       // units
	next   int           // for Sequential
	noise  *witness.Noise
}

// phase is a load until the next.
type phase struct {
	witness.Load
	units int      // of the set
	below []uint64 // for Zipf: a draw is for the first unit whose number is above it
}

// New begins a valid load. The noise is where its choices come from.
func New(l witness.Load, now time.Duration, noise *witness.Noise) *Schedule {
	s := &Schedule{begun: now, last: now, noise: noise}
	for _, one := range l.Phases() {
		p := phase{Load: one, units: one.SetMiB << 20 / witness.PageSize}
		if one.Pattern == witness.Zipf {
			p.below = zipf(p.units, one.Exponent)
		}
		s.phases = append(s.phases, p)
	}
	return s
}

// zipfBits is how many bits a draw has: as many as a float64 is exact in.
const zipfBits = 53

func zipf(units int, exponent float64) []uint64 {
	sums := make([]float64, units)
	sum := 0.0
	for i := range sums {
		sum += math.Pow(float64(i+1), -exponent)
		sums[i] = sum
	}
	below := make([]uint64, units)
	for i := range below {
		below[i] = uint64(sums[i] / sum * (1 << zipfBits))
	}
	return below
}

// Phase gives the number of the phase of now, from 0, and when it began.
func (s *Schedule) Phase() (number int, begun time.Duration) { return s.number, s.begun }

// Load gives the phase of now.
func (s *Schedule) Load() witness.Load { return s.phases[0].Load }

// Due gives how many units are to be done before it is asked again, and whether that is
// to be at once. The time never goes back. At a change of phases what is still owed by
// the old one is forgiven.
func (s *Schedule) Due(now time.Duration) (units int, again bool) {
	for len(s.phases) > 1 && now >= s.begun+s.phases[0].For {
		s.begun += s.phases[0].For
		s.phases = s.phases[1:]
		s.number++
		s.owed, s.next = 0, 0
	}
	from := max(s.last, s.begun, now-CatchUp)
	s.last = now
	p := &s.phases[0]
	if p.BytesPerSecond == witness.Unthrottled {
		if working, _ := p.at(now - s.begun); !working {
			return 0, false
		}
		if p.Kind == witness.Compile { // one is long
			return 1, true
		}
		return batch, true
	}
	_, before := p.at(from - s.begun)
	_, after := p.at(now - s.begun)
	s.owed += (after - before).Seconds() * float64(p.BytesPerSecond) / witness.PageSize
	units = int(s.owed)
	s.owed -= float64(units)
	return units, false
}

// at says whether the phase works at a time since its begin, and for how long it has.
func (p *phase) at(t time.Duration) (working bool, worked time.Duration) {
	if p.On == 0 {
		return true, t
	}
	cycles, rest := t/(p.On+p.Off), t%(p.On+p.Off)
	return rest < p.On, cycles*p.On + min(rest, p.On)
}

// Next gives the unit of the set, from 0, that the next work is for.
func (s *Schedule) Next() int {
	p := &s.phases[0]
	switch {
	case p.units == 0:
		return 0
	case p.Pattern == witness.Sequential:
		unit := s.next
		s.next = (s.next + 1) % p.units
		return unit
	case p.Pattern == witness.Zipf:
		draw := s.noise.Next() >> (64 - zipfBits)
		return sort.Search(len(p.below)-1, func(i int) bool { return p.below[i] > draw })
	case p.Pattern == witness.Hot && s.noise.Next()%10 != 0:
		return int(s.noise.Next() % uint64(max(1, p.units/10)))
	}
	return int(s.noise.Next() % uint64(p.units))
}

// Fill fills a page: first what can't be compressed, and then so many percent of zeros.
// Nothing but 100 percent make a page of zeros.
func Fill(page []byte, zeroPercent int, noise *witness.Noise) {
	random := (len(page)*(100-zeroPercent)/100 + 7) &^ 7
	noise.Fill(page[:random])
	clear(page[random:])
}
