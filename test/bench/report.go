package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"godwit.dev/godwit/internal/demo"
)

// run is one migration. Times are milliseconds.
type run struct {
	Who           string  `json:"who"` // "godwit" or "qemu"
	UDPSent       uint64  `json:"udp_sent"`
	UDPLost       uint64  `json:"udp_lost"`
	UDPDuplicated uint64  `json:"udp_duplicated"`
	TCPBroken     bool    `json:"tcp_broken"`
	LongestGapMs  float64 `json:"longest_gap_ms"`
	BlackoutMs    float64 `json:"blackout_ms"`
	TotalMs       float64 `json:"total_ms"`
	Bytes         uint64  `json:"bytes"`
	OwnMs         float64 `json:"own_ms,omitempty"` // of Godwit: the blackout less QEMU's device phase
}

func (r run) String() string {
	return fmt.Sprintf("%-6s  lost %3d of %d, longest gap %6.1f ms, blackout %6.1f ms, total %7.1f ms, %.1f MiB",
		r.Who, r.UDPLost, r.UDPSent, r.LongestGapMs, r.BlackoutMs, r.TotalMs, float64(r.Bytes)/(1<<20))
}

// figure is one line of the table: its spread for both, and the ratio of the
// medians, Godwit over QEMU; 0 where QEMU's is 0.
type figure struct {
	Name   string      `json:"name"`
	Godwit demo.Spread `json:"godwit"`
	QEMU   demo.Spread `json:"qemu"`
	Ratio  float64     `json:"ratio"`
}

type report struct {
	Runs    []run    `json:"runs"`
	Figures []figure `json:"figures"`
}

func summarize(runs []run) report {
	r := report{Runs: runs}
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
		r.Figures = append(r.Figures, f)
	}
	return r
}

// print prints the table: min, median and max of each, and the ratio.
func (r report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-16s %30s %30s %8s\n", "", "Godwit  min / median / max", "QEMU  min / median / max", "ratio")
	for _, f := range r.Figures {
		ratio := "-"
		if f.QEMU.Median != 0 {
			ratio = fmt.Sprintf("%.2f", f.Ratio)
		}
		fmt.Fprintf(w, "%-16s %30s %30s %8s\n", f.Name, spread(f.Godwit), spread(f.QEMU), ratio)
	}
}

func spread(s demo.Spread) string { return fmt.Sprintf("%.1f / %.1f / %.1f", s.Min, s.Median, s.Max) }

func (r report) write(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
