package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/zoo"
	"godwit.dev/godwit/internal/predict"
)

const (
	// foretoldTimes is how often each workload moves at each rate, unless --runs says
	// otherwise.
	foretoldTimes = 3
	// foretoldLimit is the time for the copy: some ten times that of the memory alone.
	foretoldLimit = 60 * time.Second
)

// linkRates are those of the links, in bytes a second: 200 and 400 Mbit/s.
var linkRates = [...]int64{25_000_000, 50_000_000}

// foretoldRun is one migration with what was expected of it.
type foretoldRun struct {
	Workload string  `json:"workload"`
	LinkMBs  float64 `json:"link_mb_s"`
	Who      string  `json:"who"` // "godwit", which goes on whatever it expects; "godwit, cancels"
	State    string  `json:"state"`
	Cause    string  `json:"cause,omitempty"`
	// Forecast is that before the copy, and Under the first after a pass.
	Forecast *predict.Forecast `json:"forecast,omitempty"`
	Under    *predict.Forecast `json:"under,omitempty"`
	Outcome  *predict.Outcome  `json:"outcome,omitempty"`
	// CalledAtMs is when two forecasts in a row were below the threshold, and TookMs the
	// end of it, both since the request. 0: never.
	CalledAtMs float64 `json:"called_at_ms,omitempty"`
	TookMs     float64 `json:"took_ms"`
	SentBytes  uint64  `json:"sent_bytes"`

	BlackoutPhasesMs map[string]float64 `json:"blackout_phases_ms,omitempty"`
}

func (r foretoldRun) String() string {
	text := fmt.Sprintf("%-15s %5.1f s, %8s", r.State, r.TookMs/1000, fleet.Bytes(r.SentBytes))
	if r.Forecast != nil {
		text += fmt.Sprintf("   foretold %3.0f %% %5.1f s %6.0f ms", 100*r.Forecast.Probability, r.Forecast.Total.Expected.Seconds(), milliseconds(r.Forecast.Blackout.Expected))
	}
	if r.Outcome != nil && r.Outcome.Ended {
		text += fmt.Sprintf("   came %5.1f s %6.0f ms", r.Outcome.Total.Seconds(), milliseconds(r.Outcome.Blackout))
	}
	return text
}

// runForecast has the zoo migrate over links of several rates, and grades what was
// foretold. What a forecast is corrected by came out before it was made.
func runForecast(ctx context.Context, o options) error {
	var report foretoldReport
	for _, rate := range linkRates {
		runs, err := o.foretell(ctx, rate)
		report.Runs = append(report.Runs, runs...)
		if err != nil {
			return errors.Join(err, writeJSON(o.path("forecast"), report))
		}
	}
	report.judge()
	o.forecastTables(report)
	return errors.Join(writeJSON(o.path("forecast"), report), broken(report.Targets))
}

// foretell runs the zoo over links of one rate, in a fleet that knows nothing before.
func (o options) foretell(ctx context.Context, rate int64) (runs []foretoldRun, err error) {
	var f *fleetlab.Fleet
	err = o.step(fmt.Sprintf("starting a fleet whose links have %.0f MB/s", float64(rate)/1e6), func() error {
		f, err = fleetlab.Start(ctx, fleetlab.Config{Binary: o.godwit, Image: o.image, Hosts: []fleetlab.Host{{Name: hosts[0]}, {Name: hosts[1]}}})
		return err
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, host := range hosts {
		if err := f.Lab.Cap(host, fleet.BytesPerSecond(rate)); err != nil {
			return nil, err
		}
	}
	guest := caged{options: o, fleet: f, rate: rate}
	for round := range cmp.Or(o.runs, foretoldTimes) {
		for _, load := range o.workloads(rate) {
			more, err := guest.move(ctx, load, round)
			runs = append(runs, more...)
			if err != nil {
				return runs, fmt.Errorf("%s: %w", load.Name, err)
			}
		}
	}
	return runs, nil
}

// workloads are those of the zoo that the command line names, and that have their image.
func (o options) workloads(rate int64) []zoo.Workload {
	return slices.DeleteFunc(zoo.All(rate), func(w zoo.Workload) bool {
		named, _ := path.Match(o.workload, w.Name) // parse has seen the pattern
		return w.Debian || !named
	})
}

// caged is the guest that becomes one workload after the other.
type caged struct {
	options
	fleet *fleetlab.Fleet
	rate  int64
	vm    *fleetlab.Guest
	at    int // index of its host
}

// move gives the guest a load and moves it. A workload that fails so is moved once more by
// a policy that cancels, for what that spends.
func (c *caged) move(ctx context.Context, load zoo.Workload, round int) (runs []foretoldRun, err error) {
	if c.vm == nil {
		c.vm, err = c.fleet.Boot(ctx, fleetlab.GuestConfig{Name: "caged", Host: hosts[c.at], Memory: fleet.Bytes(load.MemoryMiB) * fleet.MiB})
		if err != nil {
			return nil, err
		}
	}
	for _, way := range []struct {
		who string
		on  predict.Action
	}{{"godwit", predict.GoOn}, {"godwit, cancels", predict.Cancel}} {
		if err := c.vm.Probe().SetLoad(ctx, load.Load); err != nil {
			return runs, err
		}
		var one foretoldRun
		err := c.during(fmt.Sprintf("%2d %-24s %-15s", round+1, load.Name, way.who), func() (string, error) {
			one, err = c.moveOnce(ctx, load.Name, way.who, way.on)
			return one.String(), err
		})
		if err != nil {
			return runs, err
		}
		if runs = append(runs, one); one.State == "succeeded" {
			break
		}
	}
	return runs, nil
}

func (c *caged) moveOnce(ctx context.Context, workload, who string, on predict.Action) (one foretoldRun, err error) {
	ctx, cancel := context.WithTimeout(ctx, moveWithin)
	defer cancel()
	m, err := c.fleet.Migrate(ctx, &godwitv1.CreateMigrationRequest{
		Vm: "caged", Target: hosts[1-c.at],
		Policy: &godwitv1.MigrationPolicy{CopyLimitMs: foretoldLimit.Milliseconds(), OnPredictedFailure: string(on)},
	}, nil)
	if err != nil {
		return one, err
	}
	if m.GetState() == "succeeded" {
		c.at = 1 - c.at
	}
	one = foretoldRun{
		Workload: workload, LinkMBs: float64(c.rate) / 1e6, Who: who, State: m.GetState(), Cause: m.GetCause(),
		CalledAtMs: calledAt(m), TookMs: milliseconds(m.GetEnded().AsTime().Sub(m.GetCreated().AsTime())), SentBytes: m.GetOutcome().GetBytes(),
	}
	for _, phase := range m.GetOutcome().GetPhases() {
		if one.BlackoutPhasesMs == nil {
			one.BlackoutPhasesMs = map[string]float64{}
		}
		one.BlackoutPhasesMs[phase.GetName()] = phase.GetMs()
	}
	one.Forecast, one.Under, one.Outcome = foretold(m.GetForeseen())
	return one, nil
}
