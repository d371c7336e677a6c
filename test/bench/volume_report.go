package main

import (
	"fmt"

	"godwit.dev/godwit/internal/demo"
)

const (
	leaseChangeMax = 3.0 // ms
	latencyRatio   = 1.1
)

// volumeReport is out/bench-volume.json.
type volumeReport struct {
	Runs          []volumeRun `json:"runs"`
	LeaseChangeMs demo.Spread `json:"lease_change_ms"` // with 32 writes in flight
	Targets       []target    `json:"targets"`
}

// of gives what a server did in a case.
func (r *volumeReport) of(server string, c volumeCase) volumeRun {
	for _, run := range r.Runs {
		if run.Server == server && run.volumeCase == c {
			return run
		}
	}
	return volumeRun{}
}

// judge compares the first server with the better one of the others: at depth
// 32 by throughput, at depth 1 by the latency that one request of a hundred
// exceeds.
func (r *volumeReport) judge(servers []block) {
	for _, c := range volumeCases() {
		own := r.of(servers[0].name, c)
		var most, least float64
		for _, other := range servers[1:] {
			run := r.of(other.name, c)
			most = max(most, run.MBs)
			if least == 0 || run.P99us < least {
				least = run.P99us
			}
		}
		if c.Depth == 1 {
			r.Targets = append(r.Targets, atMost(c.String()+": p99, times that of the better one", latencyRatio, own.P99us/least))
		} else {
			r.Targets = append(r.Targets, atMost(c.String()+": throughput of the better one, times ours", 1, most/own.MBs))
		}
	}
	r.Targets = append(r.Targets, atMost("lease change with writes in flight, worst, ms", leaseChangeMax, r.LeaseChangeMs.Max))
}

func (s screen) volumeTables(r volumeReport) {
	rows := [][]string{{"case", "server", "MB/s", "IOPS", "p99 µs", "CPU µs"}}
	for _, run := range r.Runs {
		rows = append(rows, []string{run.String(), run.Server, fmt.Sprintf("%.0f", run.MBs), fmt.Sprintf("%.0f", run.IOPS), fmt.Sprintf("%.0f", run.P99us), fmt.Sprintf("%.1f", run.CPUus)})
	}
	s.say("")
	s.table(rows)
	s.targets(r.Targets)
}
