package migration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

func TestClassesAreTotal(t *testing.T) {
	known := []Class{Allow, Block, Cancel, Wait}
	if len(classes) != len(States()) {
		t.Errorf("the table has %d states, there are %d", len(classes), len(States()))
	}
	for _, state := range States() {
		if len(classes[state]) != len(Requests()) {
			t.Errorf("%s has %d requests, there are %d", state, len(classes[state]), len(Requests()))
		}
		for _, request := range Requests() {
			if !slices.Contains(known, classes[state][request]) {
				t.Errorf("%s in %s is not decided", request, state)
			}
		}
	}
}

// A class promises something that the table of events must keep.
func TestClassesAgreeWithEvents(t *testing.T) {
	for _, state := range States() {
		m := sample(t, state)
		for _, request := range Requests() {
			class, cancel := m.Class(request), table[state][CancelAsked].verdict
			switch {
			case class == Cancel && cancel != Act:
				t.Errorf("%s in %s cancels, and cancelling is %s", request, state, cancel)
			case class == Wait && cancel == Act:
				t.Errorf("%s in %s waits for what could be cancelled", request, state)
			case class == Wait && m.Timer == nil:
				t.Errorf("%s in %s waits without an end", request, state)
			case class != Allow && !m.Locked():
				t.Errorf("%s in %s: %s without a lock", request, state, class)
			}
		}
	}
}

// An end that needs an operator holds the VM only as long as somebody may still
// run it.
func TestLockOfWhatNeedsAnOperator(t *testing.T) {
	m := sample(t, NeedsOperator)
	if got := m.Class(StopVM); got != Block {
		t.Errorf("while it holds the VM a stop is %s", got)
	}
	m.Committed, m.TargetRuns = true, true
	for _, request := range Requests() {
		if got := m.Class(request); got != Allow {
			t.Errorf("when it has given the VM back %s is %s", request, got)
		}
	}
}

func TestBlockedSaysWhatIsKnown(t *testing.T) {
	const follow, end = "godwit migration watch m-1", "godwit migration cancel m-1"
	hints := map[State][]string{
		Planned: {follow, end}, Preparing: {follow, end}, Copying: {follow, end}, Switching: {follow, end},
		Settling: {follow}, RollingBack: {follow}, NeedsOperator: {"start the agent on h1"},
	}
	for state, want := range hints {
		m := sample(t, state)
		err := m.Blocked("start", epochZero)
		if fleet.CodeOf(err) != fleet.Conflict || !strings.HasPrefix(err.Error(), "start vm web1: migration m-1 from h1 to h2 holds it; its state is "+string(state)) {
			t.Errorf("%s: %v", state, err)
		}
		for _, part := range []string{follow, end, "start the agent on h1"} {
			if strings.Contains(fleet.HintOf(err), part) != slices.Contains(want, part) {
				t.Errorf("%s: hint %q, want %q", state, fleet.HintOf(err), want)
			}
		}
		if known := fleet.RetryAfterOf(err) > 0; known != (state != NeedsOperator) {
			t.Errorf("%s: retry after %v", state, fleet.RetryAfterOf(err))
		}
	}
	m := sample(t, Copying)
	m.Progress = Progress{At: epochZero, Pass: 2, Remaining: 6 * fleet.MiB, Total: 512 * fleet.MiB}
	if err := m.Blocked("start", epochZero); !strings.HasSuffix(err.Error(), "copying, pass 2, 6MiB of 512MiB left") {
		t.Errorf("progress: %v", err)
	}
}

func TestFreeIn(t *testing.T) {
	limits := DefaultPolicy(fleet.GiB)
	moving := func(m *Migration, eta time.Duration) {
		m.Progress = Progress{Heard: epochZero, Bandwidth: 100, Remaining: fleet.Bytes(100 * eta / time.Second)}
	}
	for _, test := range []struct {
		name  string
		state State
		edit  func(*Migration)
		after time.Duration
		want  time.Duration
	}{
		{"nothing is known of the copy", Preparing, nil, 10 * time.Second, limits.PrepareMax - 10*time.Second},
		{"no progress", Copying, nil, 0, limits.CopyMax + limits.Grace},
		{"the copy shrinks", Copying, func(m *Migration) { moving(m, 20*time.Second) }, 5 * time.Second, 15*time.Second + limits.Grace},
		{"longer than it may", Copying, func(m *Migration) { moving(m, time.Hour) }, 0, limits.CopyMax + limits.Grace},
		{"heard by a server whose clock is ahead", Copying, func(m *Migration) {
			moving(m, 20*time.Second)
			m.Progress.Heard = epochZero.Add(time.Minute)
		}, 0, 20*time.Second + limits.Grace},
		{"it does not shrink", Copying, func(m *Migration) {
			moving(m, 20*time.Second)
			m.Progress.DirtyRate = 100
		}, 0, limits.CopyMax + limits.Grace},
		{"the hand-over", Switching, nil, 0, limits.BlackoutMax + limits.Grace},
		{"set by a server whose clock is ahead", Preparing, nil, -time.Hour, limits.PrepareMax},
		{"a host whose clock is behind", Copying, func(m *Migration) {
			moving(m, 20*time.Second)
			m.Progress.At = epochZero.Add(-time.Hour)
		}, 0, 20*time.Second + limits.Grace},
		{"the grace time", Settling, func(m *Migration) { m.Policy.Grace = 7 * time.Second }, 0, 7 * time.Second},
		{"nearly over", Settling, func(m *Migration) { m.Policy.Grace = 7 * time.Second }, limits.SettleMax - time.Millisecond, soonest},
		{"over its time", Switching, func(m *Migration) { m.Policy.Grace = 0 }, time.Hour, soonest},
		{"two answers", RollingBack, nil, 0, soonest},
		{"an operator", NeedsOperator, nil, 0, 0},
		{"no lock", Succeeded, nil, 0, 0},
	} {
		m := sample(t, test.state)
		if test.edit != nil {
			test.edit(&m)
		}
		if got := m.FreeIn(epochZero.Add(test.after)); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

func TestETA(t *testing.T) {
	for _, test := range []struct {
		name string
		p    Progress
		want time.Duration
	}{
		{"the rest by what is left of the link", Progress{Remaining: 300, Bandwidth: 200, DirtyRate: 50}, 2 * time.Second},
		{"nothing left", Progress{Bandwidth: 1}, 0},
		{"as fast as it is sent", Progress{Remaining: 1, Bandwidth: 50, DirtyRate: 50}, -time.Millisecond},
		{"in years", Progress{Remaining: fleet.TiB, Bandwidth: 51, DirtyRate: 50}, -time.Millisecond},
	} {
		if got := test.p.ETA(); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestClassesInTheDocs holds the users' table against the code's.
func TestClassesInTheDocs(t *testing.T) {
	const file = "../../docs/operations.md"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := classTable(); !strings.Contains(string(text), want) {
		t.Errorf("%s must have\n%s", file, want)
	}
}

// classTable shows states that class everything alike in one column.
func classTable() string {
	alike := func(a, b State) bool {
		return !slices.ContainsFunc(Requests(), func(r Request) bool { return classes[a][r] != classes[b][r] })
	}
	var columns [][]string
	var first []State
	for i, state := range States() {
		if i > 0 && alike(state, first[len(first)-1]) {
			columns[len(columns)-1] = append(columns[len(columns)-1], string(state))
			continue
		}
		columns, first = append(columns, []string{string(state)}), append(first, state)
	}
	var out strings.Builder
	fmt.Fprint(&out, "| request |")
	for _, states := range columns {
		fmt.Fprintf(&out, " %s |", strings.Join(states, ", "))
	}
	fmt.Fprintf(&out, "\n|%s\n", strings.Repeat("---|", len(columns)+1))
	for _, request := range Requests() {
		fmt.Fprintf(&out, "| %s |", request)
		for _, state := range first {
			fmt.Fprintf(&out, " %s |", classes[state][request])
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}
