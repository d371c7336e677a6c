package zoo

import (
	"fmt"
	"slices"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

const (
	// memoryMiB is what a guest has, and debianMiB one with Debian's programs.
	memoryMiB = 256
	debianMiB = 384
	// small and large are the sets of the published hard guests; database is Redis's.
	small, large, database = 32, 96, 64
	// flatOut stands for as fast as the guest can, where a multiple of the link's rate is.
	flatOut = -1

	// Turn is when a workload that changes by itself does so.
	Turn = 20 * time.Second
	// BurstOn and BurstOff are the times of a burst and of the rest after it.
	BurstOn, BurstOff = time.Second, 3 * time.Second
)

// Workload is a guest that is to be moved.
type Workload struct {
	Name      string
	Load      witness.Load
	MemoryMiB int
	Debian    bool // it boots the image of Build, and else the lab's
}

// All gives every workload for a migration link of so many bytes/s, which the rates of
// the loads are multiples of.
func All(bytesPerSecond int64) []Workload {
	link := link(bytesPerSecond)
	return slices.Concat(link.calm(), link.hard(), link.steady(), link.skewed(), link.fills(), link.changing(), link.real())
}

// link is the rate of a migration link in bytes/s.
type link int64

// load writes at a multiple of the link's rate, or flatOut, over a set.
func (l link) load(multiple float64, setMiB int, pattern witness.Pattern) witness.Load {
	rate := int64(multiple * float64(l))
	if multiple == flatOut {
		rate = witness.Unthrottled
	}
	return witness.Load{BytesPerSecond: rate, SetMiB: setMiB, Pattern: pattern}
}

// of gives a workload of the lab's guest.
func of(load witness.Load, name string, args ...any) Workload {
	return Workload{Name: fmt.Sprintf(name, args...), Load: load, MemoryMiB: memoryMiB}
}

// calm is a guest whose memory is in use, but not written.
func (l link) calm() []Workload { return []Workload{of(witness.Load{SetMiB: large}, "idle")} }

// hard are the guests that others were measured with: they sweep a set of 32 or 96 MiB at
// up to three times the link's rate, or in bursts.
func (l link) hard() (all []Workload) {
	for _, set := range []int{small, large} {
		for _, multiple := range []float64{0.3, 0.8, 1.5, 3} {
			all = append(all, of(l.load(multiple, set, witness.Sequential), "sweep-%d-at-%v", set, multiple))
		}
		bursts := l.load(3, set, witness.Sequential)
		bursts.On, bursts.Off = BurstOn, BurstOff
		all = append(all, of(bursts, "bursts-%d", set))
	}
	return all
}

// steady are guests that write all pages of a set alike.
func (l link) steady() (all []Workload) {
	for _, set := range []int{small, large} {
		for _, multiple := range []float64{0.3, 0.8, 1.5} {
			all = append(all, of(l.load(multiple, set, witness.Uniform), "steady-%d-at-%v", set, multiple))
		}
		all = append(all, of(l.load(flatOut, set, witness.Uniform), "steady-%d-flat-out", set))
	}
	return all
}

// skewed are guests that write some pages more often than others.
func (l link) skewed() (all []Workload) {
	for _, multiple := range []float64{0.8, 1.5} {
		all = append(all, of(l.load(multiple, large, witness.Hot), "hot-%d-at-%v", large, multiple))
		for _, exponent := range []float64{0.7, 0.99, 1.3} {
			load := l.load(multiple, large, witness.Zipf)
			load.Exponent = exponent
			all = append(all, of(load, "zipf-%v-%d-at-%v", exponent, large, multiple))
		}
	}
	return all
}

// fills are guests whose pages can be compressed: by a half, by nine tenths, or to nothing.
func (l link) fills() (all []Workload) {
	for _, multiple := range []float64{0.8, 1.5} {
		for _, percent := range []int{50, 90, 100} {
			load := l.load(multiple, large, witness.Uniform)
			load.ZeroPercent = percent
			all = append(all, of(load, "zeros-%d%%-%d-at-%v", percent, large, multiple))
		}
	}
	return all
}

// changing are guests that become others at Turn.
func (l link) changing() []Workload {
	turn := func(from, to witness.Load) witness.Load {
		from.For, from.Then = Turn, &to
		return from
	}
	calm, busy := l.load(0.3, large, witness.Uniform), l.load(1.5, large, witness.Uniform)
	return []Workload{
		of(turn(calm, busy), "turns-busy"),
		of(turn(busy, calm), "turns-calm"),
		of(turn(busy, witness.Load{SetMiB: large}), "turns-idle"),
		of(turn(l.load(0.8, small, witness.Uniform), l.load(0.8, large, witness.Uniform)), "grows"),
	}
}

// real are guests that do what guests do.
func (l link) real() (all []Workload) {
	add := func(load witness.Load, name string, args ...any) {
		one := of(load, name, args...)
		one.Debian, one.MemoryMiB = true, debianMiB
		all = append(all, one)
	}
	for _, multiple := range []float64{0.1, 0.3} {
		load := l.load(multiple, database, witness.Uniform)
		load.Kind = witness.Redis
		add(load, "redis-%d-at-%v", database, multiple)
	}
	zipf := l.load(0.3, database, witness.Zipf)
	zipf.Kind, zipf.Exponent = witness.Redis, 0.99
	add(zipf, "redis-zipf-%d-at-0.3", database)
	full := l.load(flatOut, database, witness.Uniform)
	full.Kind = witness.Redis
	add(full, "redis-%d-flat-out", database)
	add(witness.Load{Kind: witness.Compile, BytesPerSecond: witness.Unthrottled}, "compile")
	return all
}
