package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/demo"
)

func TestReport(t *testing.T) {
	r := summarize([]run{
		{Who: "godwit", TotalMs: 110, BlackoutMs: 20}, {Who: "qemu", TotalMs: 100, UDPLost: 7},
		{Who: "qemu", TotalMs: 200, UDPLost: 9}, {Who: "godwit", TotalMs: 130, BlackoutMs: 30},
	})
	figures := map[string]figure{}
	for _, f := range r.Figures {
		figures[f.Name] = f
	}
	if f := figures["total_ms"]; f.Godwit != (demo.Spread{Min: 110, Median: 120, Max: 130}) || f.QEMU.Median != 150 || f.Ratio != 0.8 {
		t.Errorf("total: %+v", f)
	}
	if f := figures["udp_lost"]; f.Godwit.Max != 0 || f.QEMU.Min != 7 || f.Ratio != 0 {
		t.Errorf("lost: %+v", f)
	}
	var table strings.Builder
	r.print(&table)
	if !strings.Contains(table.String(), "110.0 / 120.0 / 130.0") || !strings.Contains(table.String(), "0.80") {
		t.Errorf("table:\n%s", &table)
	}
	path := filepath.Join(t.TempDir(), "out", "bench-handover.json")
	if err := r.write(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var read struct{ Runs []map[string]any }
	if err := json.Unmarshal(text, &read); err != nil || len(read.Runs) != 4 {
		t.Fatalf("%d runs: %v", len(read.Runs), err)
	}
	for _, key := range []string{"who", "udp_lost", "longest_gap_ms", "blackout_ms", "total_ms", "bytes"} {
		if _, there := read.Runs[0][key]; !there {
			t.Errorf("runs have no %s", key)
		}
	}
}
