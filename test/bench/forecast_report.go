package main

import (
	"fmt"
	"slices"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/demo"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/wire"
)

// What forecasts are held to.
const (
	totalMedianMax, totalP90Max           = 0.08, 0.20 // before the copy
	underMedianMax, underP90Max           = 0.05, 0.10 // once a pass is over
	blackoutP90Max                        = 50.0       // ms
	heldApart                             = 0.03       // that intervals may hold more or less than they claim
	precisionMin, recallMin, inFlightFair = 0.95, 0.95, 0.9
	wastedMax                             = 0.10 // of what is wasted without forecasts, median
)

// foretoldReport is out/bench-forecast.json.
type foretoldReport struct {
	Runs    []foretoldRun   `json:"runs"`
	Before  predict.Summary `json:"before"`
	Under   predict.Summary `json:"under"`
	Wasted  demo.Spread     `json:"wasted"` // share of the bytes that go-on has wasted, by workload
	Targets []target        `json:"targets"`
}

// foretold reads the forecasts of a migration, and how it came out.
func foretold(seen *godwitv1.Foreseen) (before, under *predict.Forecast, outcome *predict.Outcome) {
	var all []predict.Graded
	for _, message := range seen.GetForecasts() {
		all = append(all, predict.Graded{Forecast: wire.DecodeForecast(message)})
	}
	for _, g := range predict.OfEachStage(all) {
		if g.Forecast.Pass == 0 {
			before = &g.Forecast
		} else {
			under = &g.Forecast
		}
	}
	if seen.GetOutcome() != nil {
		outcome = new(wire.DecodeForeseenOutcome(seen.GetOutcome()))
	}
	return before, under, outcome
}

// calledAt is when the forecasts of a migration predicted its failure, in ms since the
// request; 0 if they never did.
func calledAt(m *godwitv1.Migration) float64 {
	threshold := predict.DefaultThreshold()
	var list []predict.Forecast
	for _, message := range m.GetForeseen().GetForecasts() {
		list = append(list, wire.DecodeForecast(message))
		if threshold.Met(list) {
			return milliseconds(message.GetAt().AsTime().Sub(m.GetCreated().AsTime()))
		}
	}
	return 0
}

func (r *foretoldReport) judge() {
	var before, under []predict.Graded
	for _, run := range r.Runs {
		if run.Outcome == nil {
			continue
		}
		if run.Forecast != nil {
			before = append(before, predict.Graded{Forecast: *run.Forecast, Outcome: *run.Outcome})
		}
		if run.Under != nil {
			under = append(under, predict.Graded{Forecast: *run.Under, Outcome: *run.Outcome})
		}
	}
	r.Before, r.Under = predict.Grade(before), predict.Grade(under)
	r.Wasted = demo.SpreadOf(r.wasted())
	p90 := func(s predict.Summary) float64 { return float64(s.BlackoutP90) / float64(time.Millisecond) }
	r.Targets = []target{
		atMost("total before the copy, median error", totalMedianMax, r.Before.TotalMedian),
		atMost("total before the copy, 90th percentile", totalP90Max, r.Before.TotalP90),
		atMost("total after a pass, median error", underMedianMax, r.Under.TotalMedian),
		atMost("total after a pass, 90th percentile", underP90Max, r.Under.TotalP90),
		atMost("blackout before the copy, 90th percentile, ms", blackoutP90Max, p90(r.Before)),
		atMost("blackout after a pass, 90th percentile, ms", blackoutP90Max, p90(r.Under)),
		atMost("intervals of the total before, held apart from 0.9", heldApart, apart(r.Before.TotalHeld)),
		atMost("intervals of the total after, held apart from 0.9", heldApart, apart(r.Under.TotalHeld)),
	}
	failures := func(name string, c predict.Confusion, precision, recall float64) {
		if c.Hits+c.FalseAlarms > 0 {
			r.Targets = append(r.Targets, atMost("failures "+name+", 1 - precision", 1-precision, 1-c.Precision()))
		}
		if c.Hits+c.Misses > 0 {
			r.Targets = append(r.Targets, atMost("failures "+name+", 1 - recall", 1-recall, 1-c.Recall()))
		}
	}
	failures("before", r.Before.Failures, precisionMin, recallMin)
	failures("in flight", r.Under.Failures, inFlightFair, inFlightFair)
	if len(r.wasted()) > 0 {
		r.Targets = append(r.Targets, atMost("bytes wasted of those without forecasts, median", wastedMax, r.Wasted.Median))
	}
}

func apart(held float64) float64 { return max(held-predict.Level, predict.Level-held) }

// wasted gives, for each workload that failed, what a policy that cancels has sent for
// nothing, as a share of what one that goes on has.
func (r *foretoldReport) wasted() (shares []float64) {
	for i, run := range r.Runs {
		cancels := i > 0 && run.Who != "godwit" && run.State == "aborted" && r.Runs[i-1].Workload == run.Workload
		if cancels && r.Runs[i-1].SentBytes > 0 {
			shares = append(shares, float64(run.SentBytes)/float64(r.Runs[i-1].SentBytes))
		}
	}
	slices.Sort(shares)
	return shares
}

func (s screen) forecastTables(r foretoldReport) {
	rows := [][]string{{"forecasts", "graded", "ended", "total: median error", "90 %", "held", "blackout: 90 % ms", "held", "failures: hits", "false alarms", "misses"}}
	row := func(name string, g predict.Summary) {
		rows = append(rows, []string{
			name, fmt.Sprint(g.Count), fmt.Sprint(g.Ended), fmt.Sprintf("%.3f", g.TotalMedian), fmt.Sprintf("%.3f", g.TotalP90),
			fmt.Sprintf("%.2f", g.TotalHeld), fmt.Sprintf("%.0f", milliseconds(g.BlackoutP90)), fmt.Sprintf("%.2f", g.BlackoutHeld),
			fmt.Sprint(g.Failures.Hits), fmt.Sprint(g.Failures.FalseAlarms), fmt.Sprint(g.Failures.Misses),
		})
	}
	row("before the copy", r.Before)
	row("after a pass", r.Under)
	s.say("")
	s.table(rows)
	s.targets(r.Targets)
}
