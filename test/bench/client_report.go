package main

import (
	"fmt"

	"godwit.dev/godwit/internal/demo"
)

// clientRow is what the table says of a case. Times are milliseconds.
type clientRow struct {
	flown
	Migrations     int                `json:"migrations"`
	Odd            uint64             `json:"odd"` // migrations that did not end as they should
	UDPSent        uint64             `json:"udp_sent"`
	UDPLost        uint64             `json:"udp_lost"`
	UDPDuplicated  uint64             `json:"udp_duplicated"`
	LongestGapMs   demo.Spread        `json:"longest_gap_ms"`
	TotalMs        demo.Spread        `json:"total_ms"`
	BlackoutMs     demo.Spread        `json:"blackout_ms"`
	OwnMs          demo.Spread        `json:"own_ms"`
	PhasesMs       map[string]float64 `json:"blackout_phases_ms"` // medians
	FramesReturned int64              `json:"frames_returned"`    // of all migrations
}

type clientReport struct {
	Cases   []clientRow `json:"cases"`
	Runs    []flight    `json:"runs"`
	Targets []target    `json:"targets"`
	phases  []string    // in their order
}

func summarizeClient(all []flown) clientReport {
	var r clientReport
	for _, one := range all {
		row := rowOf(one)
		r.Cases, r.Runs = append(r.Cases, row), append(r.Runs, one.flights...)
		r.Targets = append(r.Targets, row.targets()...)
		for _, f := range one.flights {
			if len(f.phases) > 0 {
				r.phases = f.phases
			}
		}
	}
	return r
}

func rowOf(one flown) clientRow {
	row := clientRow{flown: one, Migrations: len(one.flights), PhasesMs: map[string]float64{}}
	var gap, total, blackout, own []float64
	phases := map[string][]float64{}
	for _, f := range one.flights {
		row.UDPSent += f.UDPSent
		row.UDPLost += f.UDPLost
		row.UDPDuplicated += f.UDPDuplicated
		row.FramesReturned += f.FramesReturned
		if f.State != f.Want {
			row.Odd++
		}
		gap = append(gap, f.LongestGapMs)
		if len(f.phases) == 0 { // aborted
			continue
		}
		total, blackout, own = append(total, f.TotalMs), append(blackout, f.BlackoutMs), append(own, f.OwnMs)
		for name, ms := range f.BlackoutPhasesMs {
			phases[name] = append(phases[name], ms)
		}
	}
	row.LongestGapMs, row.TotalMs = demo.SpreadOf(gap), demo.SpreadOf(total)
	row.BlackoutMs, row.OwnMs = demo.SpreadOf(blackout), demo.SpreadOf(own)
	for name, values := range phases {
		row.PhasesMs[name] = demo.SpreadOf(values).Median
	}
	return row
}

func (row clientRow) targets() []target {
	var saw []seen
	for _, f := range row.flights {
		saw = append(saw, f.seen)
	}
	var torn uint64
	if row.TCPEnd != "" {
		torn = 1
	}
	targets := append(unharmed(row.Case, saw, torn), never(row.Case+": migrations that ended otherwise", row.Odd))
	if row.moved() {
		targets = append(targets, atMost(row.Case+": own_ms, median", ownMsMax, row.OwnMs.Median))
	}
	return targets
}

// moved: there is a blackout to speak of.
func (row clientRow) moved() bool { return len(row.PhasesMs) > 0 }

func (r clientReport) print(s screen) {
	cases := [][]string{{"", "migrations", "sent", "lost", "doubled", "TCP MiB", "stream", "longest gap ms  median / max", "blackout ms", "own ms", "returned"}}
	phases := [][]string{append([]string{"blackout by phase, ms, medians"}, r.phases...)}
	for _, row := range r.Cases {
		stream := "whole"
		if row.TCPEnd != "" {
			stream = "BROKEN"
		}
		blackout, own := "-", "-"
		if row.moved() {
			blackout, own = fmt.Sprintf("%.1f", row.BlackoutMs.Median), fmt.Sprintf("%.2f", row.OwnMs.Median)
			line := []string{row.Case}
			for _, name := range r.phases {
				line = append(line, fmt.Sprintf("%.2f", row.PhasesMs[name]))
			}
			phases = append(phases, line)
		}
		cases = append(cases, []string{
			row.Case, fmt.Sprint(row.Migrations), fmt.Sprint(row.UDPSent), fmt.Sprint(row.UDPLost), fmt.Sprint(row.UDPDuplicated),
			fmt.Sprintf("%.1f", float64(row.TCPBytes)/(1<<20)), stream,
			fmt.Sprintf("%.1f / %.1f", row.LongestGapMs.Median, row.LongestGapMs.Max), blackout, own, fmt.Sprint(row.FramesReturned),
		})
	}
	s.say("")
	s.table(cases)
	if len(phases) > 1 {
		s.say("")
		s.table(phases)
	}
	s.targets(r.Targets)
}
