package main

import (
	"fmt"

	"godwit.dev/godwit/internal/demo"
	"godwit.dev/godwit/internal/fleet"
)

const (
	diskWireMax     = 1.2 // GiB, with 1 GiB used
	diskBlackoutMax = 5.0 // ms more than without the disk
)

// diskReport is out/bench-disk.json.
type diskReport struct {
	Runs    []diskMove `json:"runs"`
	Targets []target   `json:"targets"`
}

// of gives a figure of all migrations of a case.
func (r diskReport) of(c diskCase, figure func(diskMove) float64) demo.Spread {
	var all []float64
	for _, run := range r.Runs {
		if run.Case == c.name {
			all = append(all, figure(run))
		}
	}
	return demo.SpreadOf(all)
}

func blackoutOf(m diskMove) float64 { return m.BlackoutMs }
func wireOf(m diskMove) float64     { return float64(m.WireBytes) / float64(fleet.GiB) }

// judge compares the medians with those of the VM without a disk.
func (r *diskReport) judge() {
	without := r.of(diskCases[0], blackoutOf).Median
	for _, c := range diskCases[1:] {
		r.Targets = append(r.Targets,
			atMost(c.name+": on the wire, worst, GiB", diskWireMax, r.of(c, wireOf).Max),
			atMost(c.name+": blackout, more than without, median, ms", diskBlackoutMax, r.of(c, blackoutOf).Median-without))
	}
}

func (s screen) diskTables(r diskReport) {
	rows := [][]string{{"VM", "blackout ms: least", "median", "most", "wire GiB: median", "most"}}
	for _, c := range diskCases {
		blackout, wire := r.of(c, blackoutOf), r.of(c, wireOf)
		rows = append(rows, []string{
			c.name, fmt.Sprintf("%.1f", blackout.Min), fmt.Sprintf("%.1f", blackout.Median), fmt.Sprintf("%.1f", blackout.Max),
			fmt.Sprintf("%.3f", wire.Median), fmt.Sprintf("%.3f", wire.Max),
		})
	}
	s.say("")
	s.table(rows)
	s.targets(r.Targets)
}
