package server

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/predict"
)

// maxLessons bounds the migrations that something is learnt from: the newest.
const maxLessons = 1000

// lessons is what ended migrations teach about those to come: how far off their
// forecasts were, and how fast the ways between hosts are.
type lessons struct {
	mu  sync.Mutex
	all map[fleet.MigrationID]lesson
}

type lesson struct {
	graded []predict.Graded
	way    way
	rate   fleet.BytesPerSecond // that it had; 0 if it says nothing of the link's
	ended  time.Time
}

// way is from one host to another.
type way struct{ from, to fleet.HostName }

func newLessons() *lessons { return &lessons{all: map[fleet.MigrationID]lesson{}} }

// learn takes a migration that has changed.
func (l *lessons) learn(m migration.Migration) {
	if !m.State.Final() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[m.ID] = lesson{graded: predict.OfEachStage(m.Graded()), way: way{m.Source, m.Target}, rate: linkRate(m), ended: m.Ended}
	if len(l.all) > maxLessons {
		oldest := m.ID
		for id := range l.all {
			oldest = max(oldest, id) // newer ones sort first
		}
		delete(l.all, oldest)
	}
}

// tellingBytes is what a pass must have sent at least to tell of the link.
const tellingBytes = 16 * fleet.MiB

// linkRate is the best that a pass had, if the policy did not hold it down.
func linkRate(m migration.Migration) (best fleet.BytesPerSecond) {
	for i := 1; i < len(m.Passes); i++ {
		from, to := m.Passes[i-1], m.Passes[i]
		rate, telling := from.Foretold().RateUntil(to.Foretold())
		if telling && to.Sent >= from.Sent+tellingBytes {
			best = max(best, rate)
		}
	}
	if limit := m.Policy.BandwidthMax; limit > 0 && best > limit*9/10 {
		return 0
	}
	return best
}

// calibration is what the forecasts so far were off.
func (l *lessons) calibration() predict.Calibration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var graded []predict.Graded
	for _, one := range l.all {
		graded = append(graded, one.graded...)
	}
	return predict.Calibrate(graded)
}

// The rate of a way is taken from so many migrations, none of them older.
const (
	lately    = 5
	latelyFor = 24 * time.Hour
)

// link is what was achieved lately between two hosts; a rate of zero if nothing is known.
func (l *lessons) link(between way, now time.Time) (link predict.Link, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []fleet.MigrationID
	for id, one := range l.all {
		if one.way == between && one.rate > 0 && now.Sub(one.ended) < latelyFor {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return predict.Link{}, ""
	}
	slices.Sort(ids)
	ids = ids[:min(lately, len(ids))]
	var sum, squares float64
	for _, id := range ids {
		x := math.Log(float64(l.all[id].rate))
		sum += x
		squares += x * x
	}
	n := float64(len(ids))
	mean := sum / n
	link = predict.Link{Rate: fleet.BytesPerSecond(math.Exp(mean)), Spread: math.Sqrt(max(0, squares/n-mean*mean))}
	return link, fmt.Sprintf("%s had it lately", counted(len(ids), "migration", "migrations"))
}
