package migration

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/predict"
)

// diagramFile is what TestDiagram keeps as the table says.
const diagramFile = "../../docs/migration-states.md"

// cellKey is a cell of the table.
type cellKey struct {
	state State
	event EventKind
}

// explore gives the states that each acting cell leads to.
func explore(t *testing.T) map[cellKey][]State {
	t.Helper()
	leads := map[cellKey][]State{}
	walk(t, func(m, next Migration, kind EventKind) {
		if cell := (cellKey{m.State, kind}); !slices.Contains(leads[cell], next.State) {
			leads[cell] = append(leads[cell], next.State)
		}
	})
	return leads
}

// walk follows every migration that events can lead to from its plan, and visits
// each step. Migrations that differ only in times, measurements and words count
// as one; so there are few.
func walk(t *testing.T, visit func(m, next Migration, kind EventKind)) {
	t.Helper()
	seen := map[string]bool{}
	for todo := []Migration{newMigration(), unheld(newMigration()), foreseen(newMigration())}; len(todo) > 0; {
		m := todo[0]
		todo = todo[1:]
		for _, kind := range Events() {
			for _, e := range variants(m, kind) {
				next, _, verdict := Step(m, e)
				if verdict != Act {
					continue
				}
				visit(m, next, kind)
				if shape := shapeOf(t, next); !seen[shape] {
					seen[shape] = true
					todo = append(todo, next)
				}
			}
		}
	}
}

func unheld(m Migration) Migration {
	m.Unheld = true
	return m
}

// later is after the newest measurement.
func later(m Migration) time.Time { return m.Foreseen.Measured.Add(time.Hour) }

func foreseen(m Migration) Migration {
	m.Foreseen.Awaited = true
	return m
}

// variants are the events of a kind that can lead to different ends.
func variants(m Migration, kind EventKind) (events []Event) {
	for _, fate := range []struct{ gone, unrun bool }{{false, false}, {true, false}, {true, true}} {
		e := event(m, kind)
		e.Gone, e.Unrun = fate.gone, fate.unrun
		events = append(events, e)
	}
	if kind == GuestMeasured {
		e := event(m, kind)
		e.Measured = hopeless
		e.Measured.Began = later(m)
		events = append(events, e)
	}
	if kind == TargetFailed {
		e := event(m, kind)
		e.Locked = "root"
		events = append(events, e)
	}
	if kind == HostLost {
		e := event(m, kind)
		e.From = string(m.Source)
		events = append(events, e)
	}
	return events
}

// shapeOf is what of a migration can decide on its future.
func shapeOf(t *testing.T, m Migration) string {
	t.Helper()
	m.Sequence, m.Story, m.Passes, m.Progress, m.Ended = 0, nil, nil, Progress{}, time.Time{}
	m.Cause, m.Remedies, m.Unaware, m.SourceMarks, m.TargetMarks, m.Compared = "", nil, "", nil, nil, nil
	if !m.Foreseen.Measured.IsZero() {
		m.Foreseen.Measured = epochZero
	}
	low := m.lowLast()
	m.Foreseen.Forecasts = nil
	if low {
		m.Foreseen.Forecasts = []Forecast{{Forecast: predict.Forecast{Known: true}}}
	}
	if m.Timer != nil {
		m.Timer = &Timer{What: m.Timer.What}
	}
	m.Pending = slices.Clone(m.Pending)
	for i := range m.Pending {
		m.Pending[i].Sequence = 0
	}
	shape, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(shape)
}

// TestEveryActingCellIsReached: a cell that no legal history comes to is
// wrong in the table, or missing in the exploration and so in the diagram.
func TestEveryActingCellIsReached(t *testing.T) {
	leads := explore(t)
	for _, state := range States() {
		for _, kind := range Events() {
			if acts, reached := table[state][kind].verdict == Act, leads[cellKey{state, kind}] != nil; acts != reached {
				t.Errorf("%s in %s: acts %v, reached %v", kind, state, acts, reached)
			}
		}
	}
}

// TestDiagram holds the page of the states to the table.
func TestDiagram(t *testing.T) {
	page := diagram(explore(t))
	if *rewrite {
		if err := os.WriteFile(diagramFile, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	stored, err := os.ReadFile(diagramFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(stored) != page {
		t.Errorf("%s is not what the table says; write it anew: go test ./internal/migration -run TestDiagram -rewrite", diagramFile)
	}
}

const diagramHead = `# The states of a migration

Generated from the table in internal/migration/table.go; a test holds this page to
it. To write it anew: ` + "`go test ./internal/migration -run TestDiagram -rewrite`" + `.

What each state means, who runs the guest in it and what any death there does is in
internal/migration/state.go.

`

const tableHead = `
## Every event in every state

` + "`→ STATE`" + ` names a state that the event can lead to; **stays**: the migration takes
the event in and can remain where it is. Where a cell has several, it depends on what
is known of both instances. The others change nothing:

* *late*: a repeat, or overtaken by something newer; nothing is to be done.
* *refused*: the asker is told no, and why.
* *broken*: no correct agent or server can send it there.

An answer to an effect that nobody waits for is late in every state.

`

func diagram(leads map[cellKey][]State) string {
	var page strings.Builder
	page.WriteString(diagramHead + "```mermaid\nstateDiagram-v2\n")
	for _, state := range States() {
		if node := nodeOf(state); node != string(state) {
			fmt.Fprintf(&page, "    state %q as %s\n", state, node)
		}
	}
	fmt.Fprintf(&page, "    [*] --> %s\n", nodeOf(Planned))
	for _, from := range States() {
		for _, to := range States() {
			if events := eventsBetween(leads, from, to); from != to && len(events) > 0 {
				fmt.Fprintf(&page, "    %s --> %s: %s\n", nodeOf(from), nodeOf(to), strings.Join(events, ", "))
			}
		}
		if from.Final() {
			fmt.Fprintf(&page, "    %s --> [*]\n", nodeOf(from))
		}
	}
	page.WriteString("```\n" + tableHead)
	writeTable(&page, leads)
	return page.String()
}

// nodeOf names a state for Mermaid, which takes no hyphens.
func nodeOf(state State) string { return strings.ReplaceAll(string(state), "-", "_") }

func eventsBetween(leads map[cellKey][]State, from, to State) (events []string) {
	for _, kind := range Events() {
		if slices.Contains(leads[cellKey{from, kind}], to) {
			events = append(events, string(kind))
		}
	}
	return events
}

func writeTable(page *strings.Builder, leads map[cellKey][]State) {
	page.WriteString("| event |")
	for _, state := range States() {
		fmt.Fprintf(page, " %s |", state)
	}
	page.WriteString("\n|---|" + strings.Repeat("---|", len(States())) + "\n")
	for _, kind := range Events() {
		fmt.Fprintf(page, "| %s |", kind)
		for _, state := range States() {
			fmt.Fprintf(page, " %s |", cellText(state, table[state][kind], leads[cellKey{state, kind}]))
		}
		page.WriteString("\n")
	}
}

func cellText(state State, decided cell, leads []State) string {
	if decided.verdict != Act {
		return verdictText(decided.verdict)
	}
	var ways []string
	for _, to := range States() {
		if to != state && slices.Contains(leads, to) {
			ways = append(ways, "→ "+string(to))
		}
	}
	if slices.Contains(leads, state) {
		ways = append(ways, "**stays**")
	}
	if decided.when != nil {
		ways = append(ways, verdictText(decided.otherwise))
	}
	return strings.Join(ways, ", ")
}

func verdictText(verdict Verdict) string {
	if verdict == Refuse {
		return "*refused*"
	}
	return "*" + string(verdict) + "*"
}
