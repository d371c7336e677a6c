package cli_test

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func between(low, expected, high float64) *godwitv1.Interval {
	return &godwitv1.Interval{Low: low, Expected: expected, High: high}
}

// hopeful and hopeless are forecasts of guests of 512 MiB.
var (
	hopeful = &godwitv1.Forecast{
		At: after(400 * time.Millisecond), Known: true, Probability: 0.994, TotalMs: between(2300, 2600, 3100), BlackoutMs: between(14, 20.4, 31),
		Bytes: between(260<<20, 268<<20, 281<<20), Passes: between(3, 3, 4), SettlesMs: 20,
		Reason: "dirties 4MiB/s over a 48MiB set; the link leaves 98.5MiB/s; pre-copy settles at 20ms, limit 300ms",
	}
	hopeless = &godwitv1.Forecast{
		At: after(400 * time.Millisecond), Known: true, Probability: 0.003, TotalMs: between(300000, 300000, 300000), BlackoutMs: between(800, 870, 950),
		Bytes: between(28<<30, 29<<30, 30<<30), Passes: between(40, 44, 61), SettlesMs: 870,
		Reason: "dirties 310MiB/s over a 96MiB set; the link leaves 110MiB/s; pre-copy settles at 870ms, limit 300ms",
	}
)

func foreseenAs(f *godwitv1.Forecast) *godwitv1.Foreseen {
	return &godwitv1.Foreseen{
		Forecasts: []*godwitv1.Forecast{f}, LinkBytesPerSecond: 98.5 * (1 << 20), LinkWhy: "3 migrations had it lately", ZeroShare: 0.31,
		Curve: []*godwitv1.DirtyCurvePoint{
			{PeriodMs: 62.5, Bytes: 300 << 10, SpreadBytes: 60 << 10}, {PeriodMs: 1000, Bytes: 4 << 20, SpreadBytes: 200 << 10},
		},
	}
}

func (m fakeMigrations) Forecast(_ context.Context, request *godwitv1.ForecastMigrationRequest) (*godwitv1.ForecastMigrationResponse, error) {
	response := &godwitv1.ForecastMigrationResponse{
		Source: "host-a", Target: "host-b", Choice: &godwitv1.Choice{Why: "3GiB of 4GiB memory stay free, 0 other VMs"},
		Refused: []*godwitv1.RefusedHost{{Host: "host-c", Why: []string{"is cordoned"}}}, Foreseen: foreseenAs(hopeful),
	}
	switch request.GetVm() {
	case "busy":
		response.Foreseen, response.Cancelled = foreseenAs(hopeless), true
	case "silent":
		response.Foreseen = &godwitv1.Foreseen{LinkWhy: "nothing is known of the way", Unmeasured: "measure vm silent: its agent does not answer"}
	}
	return response, m.note(request)
}
