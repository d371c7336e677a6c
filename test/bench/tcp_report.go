package main

import (
	"fmt"
	"path/filepath"

	"godwit.dev/godwit/internal/demo"
)

const (
	// slowStart is what is left out at the beginning of a flow, and after a migration of
	// what is called after it; seconds.
	slowStart = 1.0
	// dipBelow is the part of the throughput before below which it dips.
	dipBelow = 0.5
	// wholeInterval: the last interval may be a rest, too short to tell a rate; seconds.
	wholeInterval = 0.05
	megabyte      = 1e6
)

// tcpInterval is a tenth of a second of a flow.
type tcpInterval struct {
	AtS float64 `json:"at_s"` // its beginning, since the flow's
	MBs float64 `json:"mb_s"`

	seconds float64
}

// tcpRun is a flow. Throughputs are megabytes a second, by the client; those of nobody's
// migration are taken as if there had been one that took no time.
type tcpRun struct {
	Network   string  `json:"network"`
	Direction string  `json:"direction"`
	Who       string  `json:"who"` // moves the VM
	BeforeMBs float64 `json:"before_mb_s"`
	DuringMBs float64 `json:"during_mb_s"` // from the request until the source stops
	AfterMBs  float64 `json:"after_mb_s"`
	// LowestMBs is of the interval with the least since the request. DipMs is the longest
	// time since then with less than half of what was before, BelowHalfMs all such time.
	LowestMBs   float64       `json:"lowest_mb_s"`
	DipMs       float64       `json:"dip_ms"`
	BelowHalfMs float64       `json:"below_half_ms"`
	Retransmits uint64        `json:"retransmits"`
	Broken      string        `json:"broken,omitempty"` // why the flow did not go on
	Intervals   []tcpInterval `json:"intervals"`
	Migration   *tcpMigration `json:"migration,omitempty"`
}

func (r *tcpRun) name() string { return r.Network + " " + r.Direction + ", " + r.Who }

func (r *tcpRun) String() string {
	text := fmt.Sprintf("%5.1f MB/s before, %5.1f after, lowest %5.1f, dip %4.0f ms, %3d retransmits", r.BeforeMBs, r.AfterMBs, r.LowestMBs, r.DipMs, r.Retransmits)
	if r.Migration != nil {
		text += fmt.Sprintf(", %5.1f during, blackout %5.1f ms, in %.1f s", r.DuringMBs, r.Migration.BlackoutMs, r.Migration.TotalMs/1000)
	}
	if r.Broken != "" {
		text += ", BROKEN: " + r.Broken
	}
	return text
}

// fill takes a flow's figures out of its result.
func (r *tcpRun) fill(result flowResult) {
	for _, one := range result.Intervals {
		if s := one.Sum; s.Seconds >= wholeInterval {
			r.Intervals = append(r.Intervals, tcpInterval{AtS: s.Start, MBs: float64(s.Bytes) / megabyte / s.Seconds, seconds: s.Seconds})
		}
	}
	if r.Broken = result.Error; r.Broken == "" {
		r.Retransmits = *result.End.Sent.Retransmits
	}
	requested, stopped, resumed := moveAfter.Seconds(), moveAfter.Seconds(), moveAfter.Seconds()
	if m := r.Migration; m != nil {
		requested, stopped, resumed = m.RequestedAtS, m.StoppedAtS, m.ResumedAtS
	}
	end := flowTime.Seconds() + 1
	r.BeforeMBs = throughput(r.Intervals, slowStart, requested)
	r.DuringMBs = throughput(r.Intervals, requested, stopped)
	r.AfterMBs = throughput(r.Intervals, resumed+slowStart, end)
	r.LowestMBs, r.DipMs, r.BelowHalfMs = dip(r.Intervals, requested, r.BeforeMBs)
	if r.Broken == "" && r.AfterMBs == 0 {
		r.Broken = "nothing went through any more"
	}
}

// throughput is the mean over the intervals that lie wholly between two times.
func throughput(all []tcpInterval, from, to float64) float64 {
	var megabytes, seconds float64
	for _, one := range all {
		if one.AtS >= from && one.AtS+one.seconds <= to {
			megabytes += one.MBs * one.seconds
			seconds += one.seconds
		}
	}
	if seconds == 0 {
		return 0
	}
	return megabytes / seconds
}

// dip gives the least throughput of the intervals that end after a time, and of those with
// less than half of what was before the longest stretch and the sum, in milliseconds.
func dip(all []tcpInterval, from, before float64) (lowest, longest, sum float64) {
	lowest = before
	stretch := 0.0
	for _, one := range all {
		if one.AtS+one.seconds <= from {
			continue
		}
		lowest = min(lowest, one.MBs)
		if one.MBs >= before*dipBelow {
			stretch = 0
			continue
		}
		stretch += one.seconds * 1000
		longest, sum = max(longest, stretch), sum+one.seconds*1000
	}
	return lowest, longest, sum
}

// tcpReport is out/bench-tcp.json.
type tcpReport struct {
	Mbit    int      `json:"mbit"` // the flows' limit a second; 0 is none
	Runs    []tcpRun `json:"runs"`
	Targets []target `json:"targets"`
}

func summarizeTCP(mbit int, runs []tcpRun) tcpReport {
	var torn uint64
	for _, r := range runs {
		if r.Who == "godwit" && r.Broken != "" {
			torn++
		}
	}
	return tcpReport{Mbit: mbit, Runs: runs, Targets: []target{never("Godwit: connections broken", torn)}}
}

// print prints a line for each case: medians, and of what can be bad the worst.
func (r tcpReport) print(s screen) {
	rows := [][]string{{"MB/s, medians", "before", "during", "after", "lowest", "dip, ms", "worst", "below half, ms", "retransmits", "worst", "blackout, ms", "broken"}}
	cases := map[string][]tcpRun{}
	var names []string
	for _, one := range r.Runs {
		if cases[one.name()] == nil {
			names = append(names, one.name())
		}
		cases[one.name()] = append(cases[one.name()], one)
	}
	for _, name := range names {
		rows = append(rows, tcpRow(name, cases[name]))
	}
	s.say("")
	s.table(rows)
	s.targets(r.Targets)
}

func tcpRow(name string, runs []tcpRun) []string {
	of := func(figure func(tcpRun) float64) demo.Spread {
		var all []float64
		for _, one := range runs {
			all = append(all, figure(one))
		}
		return demo.SpreadOf(all)
	}
	during, blackout := "-", "-"
	if runs[0].Migration != nil {
		during = fmt.Sprintf("%.1f", of(func(r tcpRun) float64 { return r.DuringMBs }).Median)
		blackout = fmt.Sprintf("%.1f", of(func(r tcpRun) float64 { return r.Migration.BlackoutMs }).Median)
	}
	torn := 0
	for _, one := range runs {
		if one.Broken != "" {
			torn++
		}
	}
	dips, again := of(func(r tcpRun) float64 { return r.DipMs }), of(func(r tcpRun) float64 { return float64(r.Retransmits) })
	return []string{
		name, fmt.Sprintf("%.1f", of(func(r tcpRun) float64 { return r.BeforeMBs }).Median), during,
		fmt.Sprintf("%.1f", of(func(r tcpRun) float64 { return r.AfterMBs }).Median),
		fmt.Sprintf("%.1f", of(func(r tcpRun) float64 { return r.LowestMBs }).Median),
		fmt.Sprintf("%.0f", dips.Median), fmt.Sprintf("%.0f", dips.Max),
		fmt.Sprintf("%.0f", of(func(r tcpRun) float64 { return r.BelowHalfMs }).Median),
		fmt.Sprintf("%.0f", again.Median), fmt.Sprintf("%.0f", again.Max), blackout, fmt.Sprint(torn),
	}
}

// plotPath is where a benchmark's plot goes.
func (o options) plotPath(benchmark string) string {
	return filepath.Join(o.out, "bench-"+benchmark+".svg")
}
