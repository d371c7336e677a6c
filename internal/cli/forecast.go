package cli

import (
	"context"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/wire"
)

func newForecastCommand(app *App) *cobra.Command {
	return group("forecast", "See how good the forecasts of migrations were",
		`Before each migration, and after every pass of its copy, Godwit foretells
whether it ends within its policy, and what it takes. godwit migrate --dry-run
makes such a forecast and does nothing else.`,
		"  godwit migrate web1 --dry-run\n  godwit forecast report", newForecastReport(app))
}

func newForecastReport(app *App) *cobra.Command {
	var vm string
	most := 1000
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Grade the forecasts of past migrations by what came out",
		Long: `Report grades the forecasts of ended migrations: those made before the copy, and
the first after a pass was over. It counts what came out within the policy, or
was given up at the end of the time for the copy; ends by a fault, by somebody
or by the prediction itself say nothing of a forecast, and are left out.

An error is relative to what came out. "Held" is the share of outcomes within
the intervals, which claim 90 %. Precision is the share of predicted failures
that came, recall the share of failures that were predicted.`,
		Example: "  godwit forecast report\n  godwit forecast report --vm web1 --json | jq .before.totalP90",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				return app.reportForecasts(ctx, c, vm, most)
			})
		},
	}
	cmd.Flags().StringVar(&vm, "vm", "", "only migrations of this `vm`")
	intFlag(cmd, &most, "most", 1, math.MaxInt32, "how many migrations to look at, the newest first")
	addTimeout(cmd, &limit)
	app.completeFlag(cmd, "vm", vmNames)
	return cmd
}

// forecastReport is what the command prints.
type forecastReport struct {
	Migrations int             `json:"migrations"` // that were looked at
	Cancelled  int             `json:"cancelled"`  // on a predicted failure
	Before     predict.Summary `json:"before"`     // the copy
	Under      predict.Summary `json:"under"`      // way: the first forecast after a pass
}

func (a *App) reportForecasts(ctx context.Context, c *client.Client, vm string, most int) error {
	var r forecastReport
	var before, under []predict.Graded
	for m, err := range c.Migrations(ctx, vm) {
		if err != nil {
			return named("report", "forecasts", err)
		}
		r.Migrations++
		if m.GetForeseen().GetFailurePredicted() {
			r.Cancelled++
		}
		first, second := graded(m.GetForeseen())
		before, under = append(before, first...), append(under, second...)
		if r.Migrations == most {
			break
		}
	}
	r.Before, r.Under = predict.Grade(before), predict.Grade(under)
	if a.json {
		return a.printJSON(r)
	}
	return a.printText(func(w io.Writer) { showReport(w, a.style(), r) })
}

// graded gives the forecast before the copy and the first after a pass, where there are.
func graded(seen *godwitv1.Foreseen) (before, under []predict.Graded) {
	if seen.GetOutcome() == nil {
		return nil, nil
	}
	var all []predict.Graded
	outcome := wire.DecodeForeseenOutcome(seen.GetOutcome())
	for _, message := range seen.GetForecasts() {
		all = append(all, predict.Graded{Forecast: wire.DecodeForecast(message), Outcome: outcome})
	}
	for _, g := range predict.OfEachStage(all) {
		if g.Forecast.Pass == 0 {
			before = append(before, g)
		} else {
			under = append(under, g)
		}
	}
	return before, under
}

func showReport(w io.Writer, style style, r forecastReport) {
	fmt.Fprintf(w, "%s looked at, %d cancelled on a predicted failure\n\n", plural(int32(r.Migrations), "migration", "migrations"), r.Cancelled)
	t := table{style: style}
	t.add("FORECASTS", "BEFORE THE COPY", "AFTER A PASS")
	row := func(what string, of func(predict.Summary) string) { t.add(what, of(r.Before), of(r.Under)) }
	row("graded", func(s predict.Summary) string { return number(int32(s.Count)) })
	row("total time, median error", func(s predict.Summary) string { return percentOf(s.Ended, s.TotalMedian) })
	row("total time, 90th percentile", func(s predict.Summary) string { return percentOf(s.Ended, s.TotalP90) })
	row("total time, held", func(s predict.Summary) string { return percentOf(s.Ended, s.TotalHeld) })
	row("blackout, 90th percentile", func(s predict.Summary) string {
		if s.Ended == 0 {
			return "-"
		}
		return millis(float64(s.BlackoutP90) / float64(time.Millisecond))
	})
	row("blackout, held", func(s predict.Summary) string { return percentOf(s.Ended, s.BlackoutHeld) })
	row("bytes, 90th percentile", func(s predict.Summary) string { return percentOf(s.Ended, s.BytesP90) })
	row("failures, precision", func(s predict.Summary) string {
		return percentOf(s.Failures.Hits+s.Failures.FalseAlarms, s.Failures.Precision())
	})
	row("failures, recall", func(s predict.Summary) string {
		return percentOf(s.Failures.Hits+s.Failures.Misses, s.Failures.Recall())
	})
	t.write(w)
}

// percentOf shows a share of so many; of none there is none.
func percentOf(n int, share float64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*share)
}

// dryRun shows what a migration would be, and does nothing.
func (a *App) dryRun(ctx context.Context, c *client.Client, vm string, chosen migrateFlags) error {
	ctx, cancel := context.WithTimeout(ctx, chosen.answer)
	defer cancel()
	response, err := c.Migration.Forecast(ctx, &godwitv1.ForecastMigrationRequest{Vm: vm, Target: chosen.target, Policy: chosen.policy()})
	if err != nil {
		return named("forecast", "vm "+vm, err)
	}
	return a.printOne(response, func(w io.Writer) {
		s := sheet{w, a.style()}
		fmt.Fprintf(w, "vm %s would move from %s to %s: %s\n", vm, response.GetSource(), response.GetTarget(), response.GetChoice().GetWhy())
		a.showForecast(s, newest(response.GetForeseen()))
		showMeasured(s, response.GetForeseen())
		if response.GetCancelled() {
			fmt.Fprintln(w, "\nIt would be cancelled before anything is copied, if another measurement says the same; --force goes on.")
		}
		showRefused(s, response.GetRefused())
	})
}

func newest(seen *godwitv1.Foreseen) *godwitv1.Forecast {
	if n := len(seen.GetForecasts()); n > 0 {
		return seen.GetForecasts()[n-1]
	}
	return nil
}

// showForecast prints one forecast.
func (a *App) showForecast(s sheet, f *godwitv1.Forecast) {
	if f == nil {
		s.row("Forecast", "none: the link's rate is not known")
		return
	}
	chance := "not known: the guest was not measured"
	if f.GetKnown() {
		chance = fmt.Sprintf("%.0f %%", 100*f.GetProbability())
	}
	s.row("Ends well", chance)
	s.row("Total", interval(f.GetTotalMs(), millis))
	s.row("Blackout", interval(f.GetBlackoutMs(), millis))
	s.row("Sent", interval(f.GetBytes(), func(x float64) string { return size(uint64(x)) }))
	s.row("Passes", interval(f.GetPasses(), func(x float64) string { return fmt.Sprintf("%.0f", x) }))
	s.row("Because", f.GetReason())
}

// interval shows the expected value, and where nine of ten outcomes are.
func interval(i *godwitv1.Interval, show func(float64) string) string {
	low, expected, high := show(i.GetLow()), show(i.GetExpected()), show(i.GetHigh())
	if low == high {
		return expected
	}
	return fmt.Sprintf("%s (%s to %s)", expected, low, high)
}

// showMeasured prints what the forecasts are made of.
func showMeasured(s sheet, seen *godwitv1.Foreseen) {
	if link := seen.GetLinkBytesPerSecond(); link > 0 {
		s.row("Link", rate(link)+": "+seen.GetLinkWhy())
	} else {
		s.row("Link", seen.GetLinkWhy())
	}
	s.row("Throttle", seen.GetThrottle().GetWhy())
	s.row("Not measured", seen.GetUnmeasured())
	if len(seen.GetCurve()) == 0 {
		return
	}
	s.row("Zero pages", fmt.Sprintf("%.0f %%", 100*seen.GetZeroShare()))
	s.heading("Memory changed")
	t := table{}
	t.add("WITHIN", "CHANGED", "GIVE OR TAKE")
	for _, p := range seen.GetCurve() {
		t.add(millis(p.GetPeriodMs()), size(p.GetBytes()), size(p.GetSpreadBytes()))
	}
	s.table(t)
}

// showForeseen prints the forecasts of a migration, the first and the newest whole.
func (a *App) showForeseen(s sheet, m *godwitv1.Migration) {
	seen := m.GetForeseen()
	if seen == nil {
		return
	}
	s.heading("First forecast")
	var first *godwitv1.Forecast
	if list := seen.GetForecasts(); len(list) > 0 {
		first = list[0]
	}
	a.showForecast(s, first)
	showMeasured(s, seen)
	if len(seen.GetForecasts()) < 2 {
		return
	}
	s.heading("Forecasts")
	t := table{}
	t.add("AT", "PASS", "ENDS WELL", "TOTAL", "BLACKOUT", "BECAUSE")
	for _, f := range seen.GetForecasts() {
		chance := "?"
		if f.GetKnown() {
			chance = fmt.Sprintf("%.0f %%", 100*f.GetProbability())
		}
		t.add(sinceOf(f.GetAt(), m.GetCreated()), number(f.GetPass()), chance,
			millis(f.GetTotalMs().GetExpected()), millis(f.GetBlackoutMs().GetExpected()), f.GetReason())
	}
	s.table(t)
}
