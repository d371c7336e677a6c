package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// result is what the file says of a cell. Times are milliseconds.
type result struct {
	cell
	Ran bool   `json:"ran"`
	Why string `json:"why"` // it was not run; or what is to be known of the run

	Hit    string `json:"hit"` // how the state was hit
	Tries  int    `json:"tries"`
	Final  string `json:"final"`
	Cause  string `json:"cause"`
	RunsOn string `json:"runs_on"` // host, or the VM's phase

	// PauseMs is the longest gap in the client's echoes, -1 if the fault ended
	// the guest. DiskPauseMs is the longest time without a record on one
	// of its disks.
	PauseMs      float64 `json:"pause_ms"`
	DiskPauseMs  float64 `json:"disk_pause_ms"`
	BlackoutMs   float64 `json:"blackout_ms"`    // by the record
	PauseLimitMs float64 `json:"pause_limit_ms"` // 0: the fault itself stops the guest
	SettledMs    float64 `json:"settled_ms"`     // from the fault to the final state

	Sent       uint64   `json:"sent"`
	Lost       uint64   `json:"lost"`
	Duplicated uint64   `json:"duplicated"`
	Records    int      `json:"records"` // on the disks
	Violations []string `json:"violations"`

	story string // of the migration
}

// result judges the pause, and puts down what was found.
func (t *trial) result(e evidence) result {
	r := result{
		cell: t.cell, Ran: true, Why: t.cell.note(e.client.Lost), Hit: t.cell.how(),
		Final: t.migration.GetState(), Cause: t.migration.GetCause(), RunsOn: t.vm.GetPhase(),
		BlackoutMs: t.migration.GetOutcome().GetBlackoutMs(),
		Sent:       e.client.Sent, Lost: e.client.Lost, Duplicated: e.client.Duplicated + e.doubled,
		PauseMs: -1, DiskPauseMs: -1, SettledMs: t.settled(), Records: e.records(),
	}
	r.story = storyOf(t.migration, t.stage.begun)
	if t.alive() && !t.to.At.IsZero() {
		r.RunsOn = t.vm.GetOwner().GetHost()
		r.PauseMs = milliseconds(t.udp.Window(over(), t.from, t.to).LongestGap)
		for _, disk := range e.disks {
			r.DiskPauseMs = max(r.DiskPauseMs, milliseconds(disk.longestGap(t.from.At, t.to.At)))
		}
	}
	if !t.cell.killsOwner() && !t.cell.hangsOwner() {
		r.PauseLimitMs = milliseconds(t.cell.pauseLimit())
		if r.PauseMs > r.PauseLimitMs {
			t.found.add("long pause", "%.0f ms", r.PauseMs)
		}
	}
	r.Violations = t.found.list
	return r
}

// settled is the time from the fault to the final state, 0 if there was none.
func (t *trial) settled() float64 {
	if t.migration.GetEnded() == nil || t.stage.begun.IsZero() {
		return 0
	}
	return milliseconds(t.migration.GetEnded().AsTime().Sub(t.stage.begun))
}

// note is what a reader has to know of the run of a cell.
func (c cell) note(lost uint64) string {
	switch {
	case c.killsOwner():
		return "the fault ends the QEMU that has the VM: packets and pause are not judged"
	case c.hangsOwner():
		return "the fault itself stops the guest: the pause is not judged"
	case c.cutsFrames() && lost > 0:
		return "frames were on the link that was cut: as many lost packets as were sent meanwhile are not judged"
	}
	return ""
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}

// over is a context that has ended: what has not come does not come.
func over() context.Context {
	ctx, end := context.WithCancel(context.Background())
	end()
	return ctx
}

// notRun is the result of a cell that was not run.
func notRun(c cell, why string) result { return result{cell: c, Why: why} }

func (one result) String() string {
	if !one.Ran {
		return one.Why
	}
	text := fmt.Sprintf("%s, on %s, pause %s ms, lost %d", one.Final, one.RunsOn, figure(one.PauseMs), one.Lost)
	if len(one.Violations) > 0 {
		text += ", VIOLATED: " + strings.Join(one.Violations, "; ")
	}
	return text
}

// damaged: the lab is not as it was before the cell.
func (one result) damaged() bool {
	for _, violation := range one.Violations {
		if strings.HasPrefix(violation, leftBehind) || strings.HasPrefix(violation, notBack) {
			return true
		}
	}
	return false
}

// found is what there is to tell of a cell.
func (one result) found() string {
	return fmt.Sprintf("%s\n%s\n\n%s", one.Why, strings.Join(one.Violations, "\n"), one.story)
}

// storyOf is what happened in a migration, a line for each event, and the
// moment of the fault between them.
func storyOf(m *godwitv1.Migration, fault time.Time) string {
	var lines strings.Builder
	for _, entry := range m.GetStory() {
		if at := entry.GetAt().AsTime(); !fault.IsZero() && at.After(fault) {
			fmt.Fprintf(&lines, "%s the fault\n", clock(fault))
			fault = time.Time{}
		}
		fmt.Fprintf(&lines, "%s %s: %s → %s %s\n", clock(entry.GetAt().AsTime()), entry.GetWho(), entry.GetEvent(), entry.GetState(), entry.GetDetail())
	}
	return lines.String()
}
