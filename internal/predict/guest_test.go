package predict_test

import (
	"math/rand/v2"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/predict"
)

const page = 4096

// tick is the time that a simulated guest writes for in one go.
const tick = time.Millisecond

// workload gives the pages that a guest writes in one tick, at a time of its life.
type workload func(at time.Duration, write func(page int))

// guest is a simulated one: its memory, page by page.
type guest struct {
	memory fleet.Bytes
	used   fleet.Bytes // the rest is zero
	load   workload
	now    time.Duration
}

// runFor lets the guest run, and gives how many pages it has written.
func (g *guest) runFor(d time.Duration) int {
	written := map[int]bool{}
	for end := g.now + d; g.now < end; g.now += tick {
		g.load(g.now, func(page int) { written[page] = true })
	}
	return len(written)
}

// measure is what an agent does: some windows, and the periods in each.
func (g *guest) measure() predict.Guest {
	periods := []time.Duration{62, 125, 250, 500, 1000, 2000}
	var points []predict.Point
	for _, period := range periods {
		var sum float64
		const windows = 3
		for range windows {
			sum += float64(g.runFor(period*time.Millisecond)) * page
		}
		points = append(points, predict.Point{After: period * time.Millisecond, Dirty: fleet.Bytes(sum / windows)})
	}
	return predict.Guest{Memory: g.memory, Zero: 1 - float64(g.used)/float64(g.memory), Curve: predict.NewCurve(points)}
}

// migrate is an agent's copy by its rules. The passes that it saw are those of a
// server that had taken part.
func (g *guest) migrate(rate fleet.BytesPerSecond, limits predict.Limits) (predict.Outcome, []predict.Pass) {
	const setup, devices = 100 * time.Millisecond, 20 * time.Millisecond
	elapsed := setup
	passes := []predict.Pass{{Number: 1, After: elapsed, Remaining: g.memory}}
	onWire := float64(g.used) * (page + 8) / page
	var sent float64
	for {
		now := passes[len(passes)-1]
		took := time.Duration(onWire / float64(rate) * float64(time.Second))
		if now.Number > 1 {
			shrinks := float64(now.Remaining) < 0.7*float64(passes[len(passes)-2].Remaining)
			if took <= time.Millisecond/2 || !shrinks && took <= limits.Blackout {
				return predict.Outcome{
					Ended: true, Total: elapsed + took + devices, Blackout: took + devices,
					Bytes: fleet.Bytes(sent + onWire), Passes: now.Number,
				}, passes
			}
		}
		if elapsed+took > limits.Copy {
			return predict.Outcome{Total: limits.Copy, Bytes: fleet.Bytes(sent), Passes: now.Number}, passes
		}
		elapsed += took
		sent += onWire
		left := fleet.Bytes(g.runFor(took) * page)
		onWire = float64(left) * (page + 8) / page
		passes = append(passes, predict.Pass{Number: now.Number + 1, After: elapsed, Sent: fleet.Bytes(sent), Remaining: left})
	}
}

// steady writes random pages of a set.
func steady(random *rand.Rand, rate float64, set fleet.Bytes) workload {
	var owed float64
	return func(_ time.Duration, write func(int)) {
		for owed += rate * tick.Seconds() / page; owed >= 1; owed-- {
			write(random.IntN(int(set / page)))
		}
	}
}

// sweep writes a set from its beginning to its end, again and again.
func sweep(rate float64, set fleet.Bytes) workload {
	var owed float64
	next := 0
	return func(_ time.Duration, write func(int)) {
		for owed += rate * tick.Seconds() / page; owed >= 1; owed-- {
			write(next)
			next = (next + 1) % int(set/page)
		}
	}
}

// zipf writes some pages far more often than others.
func zipf(random *rand.Rand, rate float64, set fleet.Bytes) workload {
	pages := rand.NewZipf(random, 1.1, 8, uint64(set/page)-1)
	var owed float64
	return func(_ time.Duration, write func(int)) {
		for owed += rate * tick.Seconds() / page; owed >= 1; owed-- {
			write(int(pages.Uint64()))
		}
	}
}

// then is another load from a time on.
func then(first workload, from time.Duration, second workload) workload {
	return func(at time.Duration, write func(int)) {
		if at < from {
			first(at, write)
		} else {
			second(at, write)
		}
	}
}
