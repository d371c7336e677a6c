package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/demo"
)

// missed gives the names of the targets that were.
func missed(targets []target) (names []string) {
	for _, one := range targets {
		if !one.Met {
			names = append(names, one.Name)
		}
	}
	return names
}

// readBack gives the runs of a file that writeJSON wrote.
func readBack(t *testing.T, figures any) []map[string]any {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out", "bench.json")
	if err := writeJSON(path, figures); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var read struct{ Runs []map[string]any }
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	return read.Runs
}

func TestHandoverReport(t *testing.T) {
	r := summarize([]run{
		{Who: "godwit", TotalMs: 110, BlackoutMs: 20, OwnMs: 4}, {Who: "qemu", TotalMs: 100, seen: seen{UDPLost: 7}},
		{Who: "qemu", TotalMs: 200, seen: seen{UDPLost: 9, TCPBroken: true}}, {Who: "godwit", TotalMs: 130, BlackoutMs: 30, OwnMs: 5},
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
	if got := missed(r.Targets); got != nil || broken(r.Targets) != nil {
		t.Errorf("missed %q because of QEMU's losses", got)
	}
	var out strings.Builder
	r.print(screen{&out})
	for _, want := range []string{"110.0 / 120.0 / 130.0", "0.80", "met"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	runs := readBack(t, r)
	if len(runs) != 4 {
		t.Fatalf("%d runs", len(runs))
	}
	for _, key := range []string{"who", "udp_lost", "longest_gap_ms", "blackout_ms", "total_ms", "bytes"} {
		if _, there := runs[0][key]; !there {
			t.Errorf("runs have no %s", key)
		}
	}
}

// Speed is judged, and only loss makes the program fail.
func TestTargets(t *testing.T) {
	slow := summarize([]run{{Who: "godwit", TotalMs: 200, OwnMs: 6}, {Who: "qemu", TotalMs: 100}})
	if got := missed(slow.Targets); len(got) != 2 || broken(slow.Targets) != nil {
		t.Errorf("slow: missed %q, error %v", got, broken(slow.Targets))
	}
	for _, harm := range []seen{{UDPLost: 1}, {UDPDuplicated: 1}, {UDPCorrupted: 1}, {UDPReplayed: 1}, {TCPBroken: true}} {
		r := summarize([]run{{Who: "godwit", seen: harm}})
		if err := broken(r.Targets); err == nil || !strings.Contains(err.Error(), "Godwit") {
			t.Errorf("%+v gives %v", harm, err)
		}
	}
}

func TestClientReport(t *testing.T) {
	moved := func(name string, lost uint64, own float64) flight {
		return flight{
			Case: name, State: "succeeded", Want: "succeeded", seen: seen{UDPSent: 100, UDPLost: lost, LongestGapMs: 10 * own},
			BlackoutMs: 40, OwnMs: own, phases: []string{"notice", "commit"}, BlackoutPhasesMs: map[string]float64{"notice": 1, "commit": own - 1},
		}
	}
	aborted := flight{Case: "cancelled", State: "aborted", Want: "aborted", seen: seen{UDPSent: 50}, FramesReturned: 9}
	r := summarizeClient([]flown{
		{Case: "calm", TCPBytes: 3 << 20, flights: []flight{moved("calm", 0, 3), moved("calm", 0, 4), moved("calm", 0, 8)}},
		{Case: "fast", TCPEnd: "other bytes came back", flights: []flight{moved("fast", 2, 7)}},
		{Case: "cancelled", flights: []flight{aborted, aborted, {Case: "cancelled", State: "succeeded", Want: "aborted"}}},
	})
	calm := r.Cases[0]
	if calm.OwnMs.Median != 4 || calm.PhasesMs["commit"] != 3 || calm.UDPSent != 300 || calm.LongestGapMs.Max != 80 {
		t.Errorf("calm: %+v", calm)
	}
	if cancelled := r.Cases[2]; cancelled.FramesReturned != 18 || cancelled.moved() {
		t.Errorf("cancelled: %+v", cancelled)
	}
	want := []string{
		"fast: packets lost", "fast: TCP streams broken or not byte-exact", "fast: own_ms, median",
		"cancelled: migrations that ended otherwise",
	}
	if got := missed(r.Targets); !slices.Equal(got, want) {
		t.Errorf("missed %q, want %q", got, want)
	}
	if err := broken(r.Targets); err == nil || strings.Contains(err.Error(), "own_ms") {
		t.Errorf("error: %v", err)
	}
	var out strings.Builder
	r.print(screen{&out})
	for _, want := range []string{"BROKEN", "notice  commit", "40.0", "40.0 / 80.0", "missed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	runs := readBack(t, r)
	if len(runs) != 7 {
		t.Fatalf("%d runs", len(runs))
	}
	for _, key := range []string{"case", "state", "udp_lost", "udp_duplicated", "tcp_bytes", "longest_gap_ms", "own_ms", "blackout_phases_ms", "frames_returned"} {
		if _, there := runs[0][key]; !there {
			t.Errorf("runs have no %s", key)
		}
	}
}

func TestCommandLine(t *testing.T) {
	for line, want := range map[string]string{
		"": "handover client", "client": "client", "--runs 3 handover": "handover", "client --runs 3": "client",
	} {
		var o options
		o.memory = 256 << 20
		chosen, err := o.parse(strings.Fields(line))
		var names []string
		for _, b := range chosen {
			names = append(names, b.name)
		}
		if got := strings.Join(names, " "); got != want || err != nil || strings.Contains(line, "runs") != (o.runs == 3) {
			t.Errorf("%q chooses %q with %d runs, want %q: %v", line, got, o.runs, want, err)
		}
	}
	for _, line := range []string{"hand-over", "--runs -1", "--dirty -8"} {
		if _, err := new(options).parse(strings.Fields(line)); err == nil {
			t.Errorf("%q is taken", line)
		}
	}
}

// Of the others the better one counts, in throughput or latency by the depth.
func TestVolumeTargets(t *testing.T) {
	servers := []block{{name: "own"}, {name: "a"}, {name: "b"}}
	var r volumeReport
	for _, c := range volumeCases() {
		r.Runs = append(r.Runs, volumeRun{"own", c, 100, 1, 109, 1}, volumeRun{"a", c, 99, 1, 100, 1}, volumeRun{"b", c, 10, 1, 900, 1})
	}
	r.judge(servers)
	if got := missed(r.Targets); len(got) != 0 || len(r.Targets) != len(volumeCases())+1 {
		t.Errorf("missed %v of %d", got, len(r.Targets))
	}
	r.Runs[1].MBs, r.Runs[1].P99us, r.LeaseChangeMs.Max, r.Targets = 101, 90, 3.1, nil // depth 1: only the latency counts
	r.judge(servers)
	if got := missed(r.Targets); len(got) != 2 || !strings.Contains(got[0], "depth 1") {
		t.Errorf("missed %v", got)
	}
	read := readBack(t, r)[0]
	for _, key := range []string{"server", "pattern", "depth", "connections", "mb_s", "iops", "p99_us"} {
		if read[key] == nil {
			t.Errorf("the file has no %s: %v", key, read)
		}
	}
}

func TestReadsFio(t *testing.T) {
	var run volumeRun
	err := run.read([]byte(`fio: connected to NBD server
{"jobs": [{"read": {"iops": 0}, "write": {"bw_bytes": 2e6, "iops": 500, "total_ios": 1000, "clat_ns": {"percentile": {"99.000000": 7000}}}}]}`), time.Second)
	if err != nil || run.MBs != 2 || run.IOPS != 500 || run.P99us != 7 || run.CPUus != 1000 {
		t.Errorf("%+v, %v", run, err)
	}
	for _, bad := range []string{"", "fio: no", `{"jobs": [{}]}`} {
		var none volumeRun
		if err := none.read([]byte(bad), 0); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
