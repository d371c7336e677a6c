package migration

import (
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

var epochZero = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// sample gives a migration that has come to a state by legal steps.
func sample(t *testing.T, state State) Migration {
	t.Helper()
	paths := map[State][]EventKind{
		Planned:       {},
		Preparing:     {Started},
		Copying:       {Started, TargetPrepared},
		Switching:     {Started, TargetPrepared, SourceStopped},
		Settling:      {Started, TargetPrepared, SourceStopped, TargetLoaded},
		RollingBack:   {Started, TargetPrepared, CancelAsked},
		Succeeded:     {Started, TargetPrepared, SourceStopped, TargetLoaded, SwitchMeasured, TargetRunning, SourceRetired, AddressesKnown, TimerFired, SourceReleased, TargetFinished},
		Aborted:       {CancelAsked},
		NeedsOperator: {Started, TargetPrepared, CancelAsked, TimerFired},
	}
	m := newMigration()
	for _, kind := range paths[state] {
		m, _ = mustStep(t, m, kind)
	}
	if m.State != state {
		t.Fatalf("the path to %s ended in %s", state, m.State)
	}
	return m
}

func newMigration() Migration {
	vm := fleet.VM{Name: "web1", UID: "u1", Owner: fleet.Owner{Host: "h1", Epoch: 7}}
	return New("m-1", vm, "h2", map[string]fleet.TunnelID{"eth0": 100}, DefaultPolicy(fleet.GiB), "by hand", epochZero)
}

// event gives an event of the kind as a correct sender would send it to m.
func event(m Migration, kind EventKind) Event {
	e := Event{Kind: kind, At: epochZero, From: "h2", Detail: "because"}
	for _, effect := range m.Pending {
		if effect.Kind == answers[kind] {
			e.Answers = effect.Sequence
		}
	}
	if kind == TargetPrepared || kind == TargetCompared {
		e.Machine = fleet.Machine{fleet.MachineRAM: "1GiB"}
	}
	if kind == GuestMeasured {
		e.Measured = easy
		e.Measured.Began = later(m)
	}
	if kind == TimerFired && m.Timer != nil {
		e.At, e.Due = m.Timer.At, m.Timer.At
	}
	return e
}

func mustStep(t *testing.T, m Migration, kind EventKind) (Migration, []Effect) {
	t.Helper()
	next, effects, verdict := Step(m, event(m, kind))
	if verdict != Act {
		t.Fatalf("%s in %s: %s, not %s", kind, m.State, verdict, Act)
	}
	return next, effects
}

func TestTableIsTotal(t *testing.T) {
	if len(table) != len(States()) {
		t.Errorf("the table has %d states, there are %d", len(table), len(States()))
	}
	for _, state := range States() {
		for _, kind := range Events() {
			decided, known := table[state][kind]
			if !known {
				t.Errorf("%s in %s is not decided", kind, state)
			}
			if (decided.apply != nil) != (decided.verdict == Act) {
				t.Errorf("%s in %s: verdict %s does not go with its function", kind, state, decided.verdict)
			}
		}
	}
}

// TestForbiddenCells sends every event to every state, with a fitting answer
// and with a stale one, and checks that what is not allowed changes nothing.
func TestForbiddenCells(t *testing.T) {
	for _, state := range States() {
		for _, kind := range Events() {
			m := sample(t, state)
			stale := event(m, kind)
			stale.Answers = 999
			for _, e := range []Event{event(m, kind), stale} {
				next, effects, verdict := Step(m, e)
				if verdict == Act {
					continue
				}
				if len(effects) != 0 || next.State != m.State || len(next.Pending) != len(m.Pending) || len(next.Story) != len(m.Story) {
					t.Errorf("%s in %s: verdict %s, and yet something changed", kind, state, verdict)
				}
				if _, isAnswer := answers[kind]; isAnswer && verdict != Late && !m.expects(answers[kind], e.Answers) {
					t.Errorf("%s in %s: an answer that nothing waits for is %s, not late", kind, state, verdict)
				}
			}
		}
	}
}

// TestOwnerMoves: the owner changes in exactly these cells.
func TestOwnerMoves(t *testing.T) {
	moves := map[State][]EventKind{
		Copying:       {TargetLoaded},
		Switching:     {TargetLoaded},
		Settling:      {TargetRefused, SourceRanOn, ReturnAsked}, // of a target that nothing was heard of
		NeedsOperator: {},                                        // the sample's has not committed
	}
	for _, state := range States() {
		for _, kind := range Events() {
			m := sample(t, state)
			next, _, _ := Step(m, event(m, kind))
			moved := next.Owner() != m.Owner()
			if moved != slices.Contains(moves[state], kind) {
				t.Errorf("%s in %s: owner moved = %v", kind, state, moved)
			}
			if moved && next.Owner().Epoch <= m.Owner().Epoch {
				t.Errorf("%s in %s: the owner's epoch went from %d to %d", kind, state, m.Owner().Epoch, next.Owner().Epoch)
			}
		}
	}
}

// TestTargetIsTakenBackOnlyUnrun: once a target may have run, nothing gives the
// VM to the source, whose memory is older.
func TestTargetIsTakenBackOnlyUnrun(t *testing.T) {
	committed := sample(t, Settling)
	unresolved, _ := mustStep(t, committed, TimerFired)
	if unresolved.State != NeedsOperator || !unresolved.Locked() {
		t.Fatalf("without a word of the target it is %s, locked %v", unresolved.State, unresolved.Locked())
	}
	gone := event(committed, TargetFailed)
	gone.Gone = true
	died, _, _ := Step(committed, gone)
	runs, _ := mustStep(t, committed, TargetRunning)
	gone.Unrun = true // as no correct agent says of a target that runs
	ranAndDied, _, _ := Step(runs, gone)
	for name, tt := range map[string]struct {
		m    Migration
		want bool
	}{
		"committed":                {committed, true},
		"no word of the target":    {unresolved, true},
		"it may have run":          {died, false},
		"it runs":                  {runs, false},
		"it ran, whatever is said": {ranAndDied, false},
	} {
		for _, kind := range []EventKind{TargetRefused, SourceRanOn, ReturnAsked} {
			next, _, _ := Step(tt.m, event(tt.m, kind))
			if next.TakenBack != tt.want {
				t.Errorf("%s, %s: taken back = %v", name, kind, next.TakenBack)
			}
			if next.TakenBack && (next.State != RollingBack || next.Owner() != fleet.Owner{Host: "h1", Epoch: 9}) {
				t.Errorf("%s, %s: %s, owner %v", name, kind, next.State, next.Owner())
			}
		}
	}
	next, _, _ := Step(committed, gone)
	if !next.TakenBack {
		t.Errorf("a target that ended before it ran: %s", next.State)
	}
}

// TestNoReturnFromCommit: nothing that happens while the target owns the VM
// runs the source again, and nothing while the source does runs the target.
func TestNoReturnFromCommit(t *testing.T) {
	forbidden := map[bool][]EffectKind{
		true:  {ResumeSource, StartCopy, PrepareTarget},
		false: {RunTarget, RetireSource, ReleaseSource, FinishTarget},
	}
	for _, state := range States() {
		for _, kind := range Events() {
			m := sample(t, state)
			next, effects, _ := Step(m, event(m, kind))
			for _, effect := range effects {
				if slices.Contains(forbidden[next.Owner().Host == next.Target], effect.Kind) {
					t.Errorf("%s in %s (owner %v) wants %s", kind, state, next.Owner(), effect.Kind)
				}
			}
		}
	}
}

// TestEveryStateHasADeadline: what is not final has a timer, and firing it
// again and again ends in a final state.
func TestEveryStateHasADeadline(t *testing.T) {
	for _, state := range States() {
		m := sample(t, state)
		for range 5 {
			if m.State.Final() {
				break
			}
			if m.Timer == nil {
				t.Fatalf("%s has no timer", m.State)
			}
			m, _ = mustStep(t, m, TimerFired)
		}
		if !m.State.Final() {
			t.Errorf("from %s, five timers did not end it: %s", state, m.State)
		}
		if state != Succeeded && m.Cause == "" {
			t.Errorf("from %s it ended %s without a cause", state, m.State)
		}
	}
}

func TestCancelBeforeTheCommitEndsAtTheSource(t *testing.T) {
	for _, state := range []State{Planned, Preparing, Copying, Switching} {
		m, _ := mustStep(t, sample(t, state), CancelAsked)
		for _, kind := range []EventKind{SourceResumed, TargetReleased} {
			if next, _, verdict := Step(m, event(m, kind)); verdict == Act {
				m = next
			}
		}
		if m.State != Aborted || m.Owner().Host != "h1" || len(m.Pending) != 0 {
			t.Errorf("cancelled in %s: %s, owner %v, pending %v", state, m.State, m.Owner(), m.Pending)
		}
	}
	for _, state := range []State{Settling, Succeeded, Aborted} {
		m := sample(t, state)
		if _, _, verdict := Step(m, event(m, CancelAsked)); verdict != Refuse {
			t.Errorf("cancel in %s: %s", state, verdict)
		}
		if err := Refusal(m, event(m, CancelAsked)); fleet.CodeOf(err) != fleet.Conflict {
			t.Errorf("cancel in %s: %v", state, err)
		}
	}
}

func TestStepLeavesItsInputAlone(t *testing.T) {
	m := sample(t, Switching)
	story, pending := len(m.Story), slices.Clone(m.Pending)
	for _, kind := range Events() {
		Step(m, event(m, kind))
	}
	if len(m.Story) != story || !slices.Equal(m.Pending, pending) || m.State != Switching {
		t.Error("Step changed the migration it was given")
	}
}

func TestRecordIsBounded(t *testing.T) {
	m := sample(t, Copying)
	for pass := range 3 * maxPasses {
		e := event(m, CopyProgressed)
		e.Progress = Progress{Pass: pass + 1, PassBegins: true}
		m, _, _ = Step(m, e)
	}
	if len(m.Story) > maxStory || len(m.Passes) > maxPasses {
		t.Errorf("%d lines of story, %d passes", len(m.Story), len(m.Passes))
	}
	if m.Progress.Pass != 3*maxPasses {
		t.Errorf("progress stopped at pass %d", m.Progress.Pass)
	}
}

// What goes on has no time of its end, whatever it comes from.
func TestOnlyFinalStatesHaveEnded(t *testing.T) {
	for _, state := range States() {
		for _, kind := range Events() {
			next, _, verdict := Step(sample(t, state), event(sample(t, state), kind))
			if verdict == Act && next.State.Final() == next.Ended.IsZero() {
				t.Errorf("%s in %s leads to %s, ended %v", kind, state, next.State, next.Ended)
			}
		}
	}
}
