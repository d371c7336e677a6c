package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/demo"
)

// What the pairs are to show.
const (
	ownMsMax      = 5    // ms at the median
	totalRatioMax = 1.15 // of the medians, Godwit over QEMU
)

// run is one migration. Times are milliseconds.
type run struct {
	Who string `json:"who"` // "godwit" or "qemu"
	seen
	BlackoutMs float64 `json:"blackout_ms"`
	TotalMs    float64 `json:"total_ms"`
	Bytes      uint64  `json:"bytes"`
	OwnMs      float64 `json:"own_ms,omitempty"` // of Godwit: the blackout less QEMU's device phase
	// BlackoutPhasesMs is of Godwit, too: the parts of its blackout.
	BlackoutPhasesMs map[string]float64 `json:"blackout_phases_ms,omitempty"`
}

func (r run) String() string {
	return fmt.Sprintf("lost %3d of %4d, longest gap %6.1f ms, blackout %6.1f ms, total %7.1f ms, %5.1f MiB",
		r.UDPLost, r.UDPSent, r.LongestGapMs, r.BlackoutMs, r.TotalMs, float64(r.Bytes)/(1<<20))
}

// figure is one line of the table: its spread for both, and the ratio of the
// medians, Godwit over QEMU; 0 where QEMU's is 0.
type figure struct {
	Name   string      `json:"name"`
	Godwit demo.Spread `json:"godwit"`
	QEMU   demo.Spread `json:"qemu"`
	Ratio  float64     `json:"ratio"`
}

type handoverReport struct {
	Runs    []run    `json:"runs"`
	Figures []figure `json:"figures"`
	Targets []target `json:"targets"`
}

func summarize(runs []run) handoverReport {
	r := handoverReport{Runs: runs}
	figures := map[string]figure{}
	for _, column := range []struct {
		name string
		of   func(run) float64
	}{
		{"udp_lost", func(r run) float64 { return float64(r.UDPLost) }},
		{"udp_duplicated", func(r run) float64 { return float64(r.UDPDuplicated) }},
		{"longest_gap_ms", func(r run) float64 { return r.LongestGapMs }},
		{"blackout_ms", func(r run) float64 { return r.BlackoutMs }},
		{"own_ms", func(r run) float64 { return r.OwnMs }},
		{"total_ms", func(r run) float64 { return r.TotalMs }},
		{"mib", func(r run) float64 { return float64(r.Bytes) / (1 << 20) }},
	} {
		values := map[string][]float64{}
		for _, one := range runs {
			values[one.Who] = append(values[one.Who], column.of(one))
		}
		f := figure{Name: column.name, Godwit: demo.SpreadOf(values["godwit"]), QEMU: demo.SpreadOf(values["qemu"])}
		if f.QEMU.Median != 0 {
			f.Ratio = f.Godwit.Median / f.QEMU.Median
		}
		figures[f.Name] = f
		r.Figures = append(r.Figures, f)
	}
	r.Targets = targetsOf(runs, figures)
	return r
}

func targetsOf(runs []run, figures map[string]figure) []target {
	var saw []seen
	var torn uint64
	for _, one := range runs {
		if one.Who == "godwit" {
			saw = append(saw, one.seen)
			if one.TCPBroken {
				torn++
			}
		}
	}
	return append(unharmed("Godwit", saw, torn),
		atMost("Godwit: own_ms, median", ownMsMax, figures["own_ms"].Godwit.Median),
		atMost("Godwit: total_ms over QEMU's", totalRatioMax, figures["total_ms"].Ratio))
}

// print prints the table: min, median and max of each, and the ratio.
func (r handoverReport) print(s screen) {
	rows := [][]string{{"", "Godwit  min / median / max", "QEMU  min / median / max", "ratio"}}
	for _, f := range r.Figures {
		ratio := "-"
		if f.QEMU.Median != 0 {
			ratio = fmt.Sprintf("%.2f", f.Ratio)
		}
		rows = append(rows, []string{f.Name, spread(f.Godwit), spread(f.QEMU), ratio})
	}
	s.say("")
	s.table(rows)
	s.targets(r.Targets)
}

// writeJSON writes a benchmark's figures.
func writeJSON(path string, figures any) error {
	text, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
