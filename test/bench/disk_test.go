package main

import (
	"slices"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func TestDiskTargets(t *testing.T) {
	move := func(c diskCase, blackout float64, wire fleet.Bytes) diskMove {
		return diskMove{Case: c.name, BlackoutMs: blackout, WireBytes: uint64(wire)}
	}
	report := diskReport{Runs: []diskMove{
		move(diskCases[0], 50, 0), move(diskCases[0], 60, 0),
		move(diskCases[1], 58, fleet.GiB), move(diskCases[1], 60, fleet.GiB),
		move(diskCases[2], 61, fleet.GiB), move(diskCases[2], 62, 2*fleet.GiB),
	}}
	report.judge()
	want := []string{"disk, written to: on the wire, worst, GiB", "disk, written to: blackout, more than without, median, ms"}
	if got := missed(report.Targets); len(report.Targets) != 4 || !slices.Equal(got, want) {
		t.Errorf("missed %q of %v", got, report.Targets)
	}
	if got := readBack(t, report); len(got) != 6 || got[3]["blackout_ms"] != 60.0 || got[3]["wire_bytes"] != float64(fleet.GiB) {
		t.Errorf("read back %v", got)
	}
}
