package sim

import (
	"cmp"
	"context"
	"runtime"
	"slices"
	"sync"
	"time"
)

// Summary is what came of many seeds.
type Summary struct {
	Seeds int           `json:"seeds"`
	First uint64        `json:"first_seed"`
	Bug   Bug           `json:"bug,omitempty"`
	Harm  time.Duration `json:"harm_ns"`
	Counts
	Hours   float64   `json:"simulated_hours"`
	Seconds float64   `json:"seconds"`
	Rate    float64   `json:"simulated_hours_per_second"`
	Digest  uint64    `json:"digest,string"` // of all seeds, in no order
	Failed  []Failure `json:"failed"`
}

// Failure is a seed whose fleet did what must not be.
type Failure struct {
	Seed       uint64   `json:"seed"`
	Violations []string `json:"violations"`
}

// Plan says which seeds are simulated.
type Plan struct {
	Options
	First   uint64
	Seeds   int
	Workers int // 0 for as many as there are processors
	// StopAtFirst begins no more seeds once one has failed.
	StopAtFirst bool
	// Progress is called after every seed, by one goroutine at a time.
	Progress func(done, failed int)
}

// many hands out seeds in order and adds up what comes of them.
type many struct {
	Plan
	mu      sync.Mutex
	next    int
	summary Summary
}

// Many simulates one fleet after the other, several at a time. What comes of it
// does not depend on how many at a time, but for the time that it takes. It ends
// early with ctx.
func Many(ctx context.Context, plan Plan) Summary {
	if plan.Workers <= 0 {
		plan.Workers = runtime.GOMAXPROCS(0)
	}
	plan.Harm = plan.harm()
	m := &many{Plan: plan, summary: Summary{First: plan.First, Bug: plan.Bug, Harm: plan.Harm, Counts: newCounts(), Failed: []Failure{}}}
	began := time.Now()
	var workers sync.WaitGroup
	for range plan.Workers {
		workers.Go(func() {
			for seed, left := m.take(ctx); left; seed, left = m.take(ctx) {
				m.add(Run(seed, plan.Options, nil))
			}
		})
	}
	workers.Wait()
	s := m.summary
	s.Seconds = time.Since(began).Seconds()
	s.Rate = s.Hours / max(s.Seconds, 1e-9)
	slices.SortFunc(s.Failed, func(a, b Failure) int { return cmp.Compare(a.Seed, b.Seed) })
	return s
}

// FindBug puts a bug in and simulates until it shows, for so many seeds at most.
func FindBug(ctx context.Context, bug Bug, seeds int) Summary {
	return Many(ctx, Plan{First: 1, Seeds: seeds, StopAtFirst: true, Options: Options{Bug: bug}})
}

func (m *many) take(ctx context.Context) (seed uint64, left bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil || m.next >= m.Seeds || m.StopAtFirst && len(m.summary.Failed) > 0 {
		return 0, false
	}
	m.next++
	return m.First + uint64(m.next-1), true
}

func (m *many) add(r Result) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.summary
	s.Seeds++
	s.Counts.add(r.Counts)
	s.Hours += r.Simulated.Hours()
	s.Digest += r.Digest * (2*r.Seed + 1)
	if len(r.Violations) > 0 {
		s.Failed = append(s.Failed, Failure{r.Seed, r.Violations})
	}
	if m.Progress != nil {
		m.Progress(s.Seeds, len(s.Failed))
	}
}
