package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/probe"
)

// soakResult is what the file says of many migrations under harm.
type soakResult struct {
	Seed       uint64         `json:"seed"`
	Migrations int            `json:"migrations"`
	States     map[string]int `json:"states"`
	Causes     map[string]int `json:"causes"` // of those that did not succeed
	Faults     map[string]int `json:"faults"`
	Moves      []soakMove     `json:"moves"`
	turns      int            // how often the VM was given to the other host

	Sent          uint64       `json:"sent"`
	Lost          uint64       `json:"lost"`
	Losses        []probe.Loss `json:"losses"`
	Duplicated    uint64       `json:"duplicated"`
	GuestReceived uint64       `json:"guest_received"`
	StreamBytes   uint64       `json:"stream_bytes"`
	Records       int          `json:"records"`
	LongestGapMs  float64      `json:"longest_gap_ms"`
	Violations    []string     `json:"violations"`
}

// soakMove is one migration of them, so that what was lost can be found.
type soakMove struct {
	ID     string    `json:"id"`
	Begun  time.Time `json:"begun"`
	Ended  time.Time `json:"ended"`
	Target string    `json:"target"`
	State  string    `json:"state"`
	Cause  string    `json:"cause"`
}

// count adds a migration that is over.
func (r *soakResult) count(m *godwitv1.Migration) {
	r.Migrations++
	r.States[m.GetState()]++
	if m.GetState() != "succeeded" {
		r.Causes[m.GetCause()]++
	}
	if m.GetCommitted() {
		r.turns++
	}
	if m.GetTakenBack() {
		r.turns++
	}
	r.Moves = append(r.Moves, soakMove{
		ID: m.GetId(), Begun: m.GetCreated().AsTime(), Ended: time.Now().UTC(),
		Target: m.GetTarget(), State: m.GetState(), Cause: m.GetCause(),
	})
}

// during names the migrations that were under way when packets were lost.
func (r *soakResult) during(loss probe.Loss) (ids []string) {
	for _, move := range r.Moves {
		if move.Begun.Before(loss.Last) && move.Ended.After(loss.First) {
			ids = append(ids, fmt.Sprintf("%s (%s)", move.ID, cmp.Or(move.Cause, move.State)))
		}
	}
	return ids
}

func (r *soakResult) put(e evidence, found findings) {
	r.Sent, r.Lost, r.Duplicated = e.client.Sent, e.client.Lost, e.client.Duplicated+e.doubled
	r.Records, r.LongestGapMs = e.records(), milliseconds(e.client.LongestGap)
	r.Violations = found.list
}

func (r soakResult) save(path string) error { return saveJSON(path, r) }

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
	for _, loss := range r.Losses {
		fmt.Fprintf(w, "  %d lost from %s to %s: %s\n", loss.Count,
			loss.First.UTC().Format(time.StampMilli), loss.Last.UTC().Format(time.StampMilli), strings.Join(r.during(loss), ", "))
	}
	fmt.Fprintf(w, "stream: %d bytes came back; disks: %d records\n", r.StreamBytes, r.Records)
	for _, violation := range r.Violations {
		fmt.Fprintln(w, "VIOLATED:", violation)
	}
	if len(r.Violations) == 0 {
		fmt.Fprintln(w, "nothing lost, doubled or left behind")
	}
}
