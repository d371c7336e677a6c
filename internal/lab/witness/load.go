package witness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// PageSize is the size in bytes of what a load writes at a time.
const PageSize = 4096

// Limits of a load.
const (
	MaxLoadRate   = 64 << 30 // bytes/s
	MaxSetMiB     = 1 << 20
	MaxExponent   = 4
	MaxPhases     = 8
	MaxLoadPeriod = 24 * time.Hour
)

// Unthrottled is the rate of a load that does as much as the guest can.
const Unthrottled = -1

// Load is the work of a guest, done from when it is given. The zero value is none.
//
// Its unit is a page written, a value of a page's size set in a database, or a
// compilation; a Report counts them.
type Load struct {
	Kind           Kind  `json:"kind,omitempty"`
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"` // PageSize of a unit; or Unthrottled
	SetMiB         int   `json:"set_mib,omitempty"`          // that the writes are spread over

	Pattern  Pattern `json:"pattern,omitempty"`
	Exponent float64 `json:"exponent,omitempty"` // of Zipf

	// ZeroPercent is how much of each page is zeros. The rest can't be compressed.
	ZeroPercent int `json:"zero_percent,omitempty"`

	// A load with On and Off comes in bursts: it does its work for On, and nothing for
	// Off, and so on.
	On  time.Duration `json:"on_ns,omitempty"`
	Off time.Duration `json:"off_ns,omitempty"`

	// After For this load becomes the load Then, and else it stays.
	For  time.Duration `json:"for_ns,omitempty"`
	Then *Load         `json:"then,omitempty"`
}

// Kind says what work a load is.
type Kind string

// The kinds. Redis and Compile need an image that has the programs, see package zoo.
const (
	Memory  Kind = ""        // pages of the guest's own memory are written
	Redis   Kind = "redis"   // values are set in a Redis that saves nothing; a key for each page of the set
	Compile Kind = "compile" // a C source is compiled, Unthrottled, in memory
)

// Pattern says which page is written next.
type Pattern string

// The patterns.
const (
	Uniform    Pattern = "uniform"    // any page, all alike; the default
	Sequential Pattern = "sequential" // one after the other, round and round
	Hot        Pattern = "hot"        // nine writes of ten to a tenth of the set
	Zipf       Pattern = "zipf"       // page n, counted from 1, as often as n^-Exponent
)

// Phases gives the load and all that it becomes, in order; no more than one too many.
func (l Load) Phases() (phases []Load) {
	for phase := &l; phase != nil && len(phases) <= MaxPhases; phase = phase.Then {
		phases = append(phases, *phase)
	}
	return phases
}

// Set gives the largest set of all phases, in bytes.
func (l Load) Set() (size int) {
	for _, phase := range l.Phases() {
		size = max(size, phase.SetMiB<<20)
	}
	return size
}

// Valid says what is wrong with l, or nil.
func (l Load) Valid() error {
	phases := l.Phases()
	if len(phases) > MaxPhases {
		return fmt.Errorf("the load has more than %d phases", MaxPhases)
	}
	for _, phase := range phases {
		if phase.Kind != l.Kind {
			return errors.New("the phases of a load are not of one kind")
		}
		if err := errors.Join(phase.validWork(), phase.validTimes()); err != nil {
			return err
		}
	}
	return nil
}

func (l Load) validWork() error {
	writes := l.BytesPerSecond != 0
	switch {
	case l.BytesPerSecond != Unthrottled && (l.BytesPerSecond < 0 || l.BytesPerSecond > MaxLoadRate):
		return fmt.Errorf("a rate of %d bytes/s is not within 0..%d", l.BytesPerSecond, int64(MaxLoadRate))
	case l.SetMiB < 0 || l.SetMiB > MaxSetMiB:
		return fmt.Errorf("a set of %d MiB is not within 0..%d", l.SetMiB, MaxSetMiB)
	case l.ZeroPercent < 0 || l.ZeroPercent > 100:
		return fmt.Errorf("%d percent of zeros are not within 0..100", l.ZeroPercent)
	case l.Pattern == Zipf && !(l.Exponent > 0 && l.Exponent <= MaxExponent):
		return fmt.Errorf("an exponent of %v is not within 0..%d", l.Exponent, MaxExponent)
	case l.Pattern != Zipf && l.Exponent != 0:
		return errors.New("only zipf has an exponent")
	}
	switch l.Pattern {
	case "", Uniform, Sequential, Hot, Zipf:
	default:
		return fmt.Errorf("unknown pattern %q", l.Pattern)
	}
	switch l.Kind {
	case Memory, Redis:
		if writes && l.SetMiB == 0 {
			return errors.New("a rate needs a set")
		}
	case Compile:
		work := Load{BytesPerSecond: l.BytesPerSecond, SetMiB: l.SetMiB, Pattern: l.Pattern, ZeroPercent: l.ZeroPercent}
		if work != (Load{}) && work != (Load{BytesPerSecond: Unthrottled}) {
			return errors.New("a compilation is unthrottled, and has no set, pattern or zeros")
		}
	default:
		return fmt.Errorf("unknown kind %q", l.Kind)
	}
	return nil
}

func (l Load) validTimes() error {
	for _, d := range []time.Duration{l.On, l.Off, l.For} {
		if d < 0 || d > MaxLoadPeriod {
			return fmt.Errorf("%v is not within 0..%v", d, MaxLoadPeriod)
		}
	}
	if (l.On > 0) != (l.Off > 0) {
		return errors.New("a burst needs both on and off")
	}
	if (l.For > 0) != (l.Then != nil) {
		return errors.New("a phase that ends needs both its time and what follows")
	}
	return nil
}

// JSON gives the load as ParseLoad reads it, without spaces.
func (l Load) JSON() string {
	text, err := json.Marshal(l)
	if err != nil {
		return err.Error() // an exponent that is no number, which no valid load has
	}
	return string(text)
}

// ParseLoad reads the JSON of one load, and nothing else.
func ParseLoad(text string) (l Load, err error) {
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&l); err != nil {
		return Load{}, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Load{}, errors.New("there is more than one load")
	}
	if err := l.Valid(); err != nil {
		return Load{}, err
	}
	return l, nil
}
