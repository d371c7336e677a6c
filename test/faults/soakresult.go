package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// soakResult is what the file says of many migrations under harm.
type soakResult struct {
	Seed       uint64         `json:"seed"`
	Migrations int            `json:"migrations"`
	States     map[string]int `json:"states"`
	Causes     map[string]int `json:"causes"` // of those that did not succeed
	Faults     map[string]int `json:"faults"`

	Sent          uint64   `json:"sent"`
	Lost          uint64   `json:"lost"`
	Duplicated    uint64   `json:"duplicated"`
	GuestReceived uint64   `json:"guest_received"`
	StreamBytes   uint64   `json:"stream_bytes"`
	Records       int      `json:"records"`
	LongestGapMs  float64  `json:"longest_gap_ms"`
	Violations    []string `json:"violations"`
}

func (r *soakResult) put(e evidence, found findings) {
	r.Sent, r.Lost, r.Duplicated = e.client.Sent, e.client.Lost, e.client.Duplicated+e.doubled
	r.Records, r.LongestGapMs = len(e.disk.last), milliseconds(e.client.LongestGap)
	r.Violations = found.list
}

func (r soakResult) save(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func (r soakResult) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d migrations: %v, seed %d\n", r.Migrations, r.States, r.Seed)
	for _, cause := range slices.Sorted(maps.Keys(r.Causes)) {
		fmt.Fprintf(w, "  %3d  %s\n", r.Causes[cause], cause)
	}
	fmt.Fprintln(w, "faults:")
	for _, fault := range slices.Sorted(maps.Keys(r.Faults)) {
		fmt.Fprintf(w, "  %3d  %s\n", r.Faults[fault], fault)
	}
	fmt.Fprintf(w, "packets: %d sent, %d came to the guest, %d lost, %d doubled; longest gap %.0f ms\n",
		r.Sent, r.GuestReceived, r.Lost, r.Duplicated, r.LongestGapMs)
	fmt.Fprintf(w, "stream: %d bytes came back; disk: %d records\n", r.StreamBytes, r.Records)
	for _, violation := range r.Violations {
		fmt.Fprintln(w, "VIOLATED:", violation)
	}
	if len(r.Violations) == 0 {
		fmt.Fprintln(w, "nothing lost, doubled or left behind")
	}
}
