package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"godwit.dev/godwit/internal/demo"
	"godwit.dev/godwit/internal/fleet"
)

const (
	benchVolume  = 512 * fleet.MiB
	usualRounds  = 3
	roundSeconds = 1
)

// volumeCase is one way to use a server.
type volumeCase struct {
	Pattern     string `json:"pattern"`
	Depth       int    `json:"depth"` // of each connection
	Connections int    `json:"connections"`
}

func (c volumeCase) String() string {
	return fmt.Sprintf("%s, depth %d, %d connections", c.Pattern, c.Depth, c.Connections)
}

// volumeRun is what one server did in one case.
type volumeRun struct {
	Server string `json:"server"`
	volumeCase
	MBs   float64 `json:"mb_s"`
	IOPS  float64 `json:"iops"`
	P99us float64 `json:"p99_us"`
	CPUus float64 `json:"cpu_us"` // of the server's processor time for one request
}

// patterns are fio's names for ours.
var patterns = map[string][]string{
	"seq-read": {"--rw=read", "--bs=256k"}, "seq-write": {"--rw=write", "--bs=256k"},
	"rand-read": {"--rw=randread", "--bs=4k"}, "rand-write": {"--rw=randwrite", "--bs=4k"},
}

func volumeCases() (cases []volumeCase) {
	for _, pattern := range []string{"seq-read", "seq-write", "rand-read", "rand-write"} {
		for _, depth := range []int{1, 32} {
			for _, connections := range []int{1, 4} {
				cases = append(cases, volumeCase{pattern, depth, connections})
			}
		}
	}
	return cases
}

func runVolume(ctx context.Context, o options) (err error) {
	for _, program := range []string{"qemu-storage-daemon", "nbdkit", "fio"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("needs %s, which make setup installs: %w", program, err)
		}
	}
	b, err := startBlocks(ctx, o.godwit, benchVolume)
	if err != nil {
		return err
	}
	defer b.stop()
	// Written once, so that none of the cases is the first to have to find blocks.
	fill := volumeCase{Pattern: "seq-write", Depth: 8, Connections: 1}
	if err := o.step("filling the volume", func() error { _, err := fio(ctx, b.servers[0], fill, 0); return err }); err != nil {
		return err
	}
	var report volumeReport
	for _, c := range volumeCases() {
		if err := o.during(c.String(), func() (string, error) { return report.measure(ctx, b, c, cmp.Or(o.runs, usualRounds)) }); err != nil {
			return err
		}
	}
	if err := o.during(fmt.Sprintf("%d lease changes with %d writes in flight", leaseChanges, leaseDepth), func() (string, error) {
		report.LeaseChangeMs, err = measureLeases(ctx, b)
		return spread(report.LeaseChangeMs) + " ms", err
	}); err != nil {
		return err
	}
	report.judge(b.servers)
	o.volumeTables(report)
	return writeJSON(o.path("volume"), report)
}

// measure runs one case by turns on all servers and keeps the median of each
// figure of each server.
func (r *volumeReport) measure(ctx context.Context, b *blocks, c volumeCase, rounds int) (text string, err error) {
	found := make([][]volumeRun, len(b.servers))
	for range rounds {
		for i, server := range b.servers {
			run, err := fio(ctx, server, c, roundSeconds)
			if err != nil {
				return "", err
			}
			found[i] = append(found[i], run)
		}
	}
	for i, server := range b.servers {
		median := volumeRun{
			Server: server.name, volumeCase: c,
			MBs:   medianOf(found[i], func(run volumeRun) float64 { return run.MBs }),
			IOPS:  medianOf(found[i], func(run volumeRun) float64 { return run.IOPS }),
			P99us: medianOf(found[i], func(run volumeRun) float64 { return run.P99us }),
			CPUus: medianOf(found[i], func(run volumeRun) float64 { return run.CPUus }),
		}
		r.Runs = append(r.Runs, median)
		text += fmt.Sprintf("%s %.0f MB/s, p99 %.0f µs, CPU %.1f µs  ", median.Server, median.MBs, median.P99us, median.CPUus)
	}
	return text, nil
}

func medianOf(runs []volumeRun, figure func(volumeRun) float64) float64 {
	var all []float64
	for _, run := range runs {
		all = append(all, figure(run))
	}
	return demo.SpreadOf(all).Median
}

// fio runs fio's NBD engine: for so many seconds, or over the whole once.
func fio(ctx context.Context, server block, c volumeCase, seconds int) (volumeRun, error) {
	run := volumeRun{Server: server.name, volumeCase: c}
	args := append([]string{"--name=bench", "--ioengine=nbd", "--uri=" + server.uri, "--output-format=json", "--group_reporting",
		"--size=" + strconv.FormatUint(uint64(benchVolume), 10), "--iodepth=" + strconv.Itoa(c.Depth),
		"--numjobs=" + strconv.Itoa(c.Connections)}, patterns[c.Pattern]...)
	if seconds > 0 {
		args = append(args, "--time_based", "--runtime="+strconv.Itoa(seconds))
	}
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Stderr = os.Stderr
	before, err := server.cpu()
	if err != nil {
		return run, err
	}
	output, err := cmd.Output()
	if err != nil {
		return run, fmt.Errorf("fio on %s: %w", server.name, err)
	}
	after, err := server.cpu()
	if err != nil {
		return run, err
	}
	return run, run.read(output, after-before)
}

// fioSide is what fio says of reads or writes.
type fioSide struct {
	Requests float64 `json:"total_ios"`
	Bytes    float64 `json:"bw_bytes"`
	IOPS     float64 `json:"iops"`
	Latency  struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

func (r *volumeRun) read(output []byte, cpu time.Duration) error {
	var result struct {
		Jobs []struct{ Read, Write fioSide } `json:"jobs"`
	}
	// The engine's own messages come before.
	if err := json.Unmarshal(output[max(bytes.IndexByte(output, '{'), 0):], &result); err != nil {
		return fmt.Errorf("fio says %.100q: %w", output, err)
	}
	for _, job := range result.Jobs {
		for _, side := range []fioSide{job.Read, job.Write} {
			if side.IOPS > 0 {
				r.CPUus = float64(cpu.Microseconds()) / side.Requests
				r.MBs, r.IOPS, r.P99us = side.Bytes/1e6, side.IOPS, side.Latency.Percentile["99.000000"]/1e3
			}
		}
	}
	if r.IOPS == 0 {
		return fmt.Errorf("fio did nothing on %s in %v", r.Server, r.volumeCase)
	}
	return nil
}
