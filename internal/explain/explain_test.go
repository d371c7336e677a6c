package explain

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
)

var created = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(ms float64) *timestamppb.Timestamp {
	return timestamppb.New(created.Add(time.Duration(ms * float64(time.Millisecond))))
}

// handedOver is a migration whose clocks agree: the source's hand-over begins
// at 1000 ms and the target's guest runs at 1020 ms.
func handedOver() *godwitv1.Migration {
	entry := func(ms float64, event migration.EventKind, state migration.State) *godwitv1.StoryEntry {
		return &godwitv1.StoryEntry{At: at(ms), Event: string(event), State: string(state)}
	}
	m := &godwitv1.Migration{
		Vm: "web1", Source: "h1", Target: "h2", Created: at(0), State: string(migration.Settling), Committed: true,
		Passes:      []*godwitv1.Pass{{Number: 1, At: at(500)}},
		SourceMarks: &godwitv1.SourceMarks{GateFlipped: at(999), Stopped: at(1000), PreSwitchover: at(1005), Continued: at(1006), Drained: at(1007), Completed: at(1017)},
		TargetMarks: &godwitv1.TargetMarks{Loaded: at(1015), Asked: at(1016), Answered: at(1018), Resumed: at(1020)},
		Story: []*godwitv1.StoryEntry{
			entry(400, migration.TargetPrepared, migration.Copying), entry(1008, migration.SourceStopped, migration.Switching),
			entry(1017, migration.TargetLoaded, migration.Settling), entry(1021, migration.TargetRunning, migration.Settling),
			entry(1200, migration.SwitchMeasured, migration.Settling),
		},
	}
	m.Story[0].Ordered = []*godwitv1.Order{{Sequence: 2, Kind: string(migration.StartCopy), Host: "h1"}}
	return m
}

// shift sets the clock of a host forward.
func shift(ms float64, stamps ...*timestamppb.Timestamp) {
	for _, stamp := range stamps {
		moved := timestamppb.New(stamp.AsTime().Add(time.Duration(ms * float64(time.Millisecond))))
		stamp.Seconds, stamp.Nanos = moved.Seconds, moved.Nanos
	}
}

func sourceClock(m *godwitv1.Migration) []*timestamppb.Timestamp {
	s := m.GetSourceMarks()
	return []*timestamppb.Timestamp{s.GateFlipped, s.Stopped, s.PreSwitchover, s.Continued, s.Drained, s.Completed, m.GetPasses()[0].At}
}

func targetClock(m *godwitv1.Migration) []*timestamppb.Timestamp {
	g := m.GetTargetMarks()
	return []*timestamppb.Timestamp{g.Loaded, g.Asked, g.Answered, g.Resumed}
}

// What the marks prove of the clocks is true of them, and nothing is made up.
func TestClocks(t *testing.T) {
	for name, test := range map[string]struct {
		source, target float64 // how far each clock is ahead of the server's
		want           []string
	}{
		"all agree":              {},
		"off by less than shows": {source: 8},
		"source ahead":           {source: 300, want: []string{"h1 ahead of h2 by 291", "h1 ahead of server by 292"}},
		"source behind":          {source: -300, want: []string{"server ahead of h1 by 200"}},
		"target ahead":           {target: 300, want: []string{"h2 ahead of server by 299"}},
		"target behind":          {target: -300, want: []string{"h1 ahead of h2 by 291", "server ahead of h2 by 299"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := handedOver()
			shift(test.source, sourceClock(m)...)
			shift(test.target, targetClock(m)...)
			var got []string
			for _, d := range Of(m).Clocks {
				got = append(got, fmt.Sprintf("%s ahead of %s by %.0f", d.Ahead, d.Behind, d.AtLeastMs))
			}
			slices.Sort(got)
			if !slices.Equal(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// A target's agent that took over asked once more for what was committed.
func TestLateAskProvesNothing(t *testing.T) {
	m := handedOver()
	g := m.GetTargetMarks()
	g.Loaded, g.Asked, g.Answered, g.Resumed = at(1100), at(1100), at(1101), at(1102)
	m.Story[3].At = at(1103)
	if story := Of(m); len(story.Clocks)+len(story.Shifts) != 0 {
		t.Errorf("the clocks disagree: %+v, and are shifted by %+v", story.Clocks, story.Shifts)
	}
}

// Whatever the clocks are off by, nothing is told before what led to it, and the
// figures are near the truth.
func TestAxis(t *testing.T) {
	for name, test := range map[string]struct{ source, target float64 }{ // how far each clock is ahead of the server's
		"all agree":                   {},
		"source a little ahead":       {source: 30},
		"target a little behind":      {target: -30},
		"source an hour ahead":        {source: 3_600_000},
		"source an hour behind":       {source: -3_600_000},
		"target an hour ahead":        {target: 3_600_000},
		"target an hour behind":       {target: -3_600_000},
		"both an hour ahead":          {3_600_000, 3_600_000},
		"an hour to either side":      {3_600_000, -3_600_000},
		"an hour to the other side":   {-3_600_000, 3_600_000},
		"ahead, and further ahead":    {3_600_000, 7_200_000},
		"behind, and a little behind": {-3_600_000, -20},
	} {
		t.Run(name, func(t *testing.T) {
			m := handedOver()
			shift(test.source, sourceClock(m)...)
			shift(test.target, targetClock(m)...)
			if apart := test.target - test.source; max(apart, -apart) > 20 { // as the core has it
				loaded, completed := m.GetTargetMarks().GetLoaded().AsTime(), m.GetSourceMarks().GetCompleted().AsTime()
				m.Outcome = &godwitv1.Outcome{ClocksApartMs: proto.Float64(loaded.Sub(completed).Seconds() * 1000)}
			}
			checkOrder(t, Of(m), test.source, test.target)
		})
	}
}

// A copy that is under way has only begun, whatever its host's clock says.
func TestAxisOfCopy(t *testing.T) {
	for _, ahead := range []float64{3_600_000, -3_600_000} {
		m := handedOver()
		m.State, m.Committed, m.SourceMarks, m.TargetMarks, m.Story = string(migration.Copying), false, nil, nil, m.Story[:1]
		m.Progress = &godwitv1.Progress{At: at(701), Heard: at(702)}
		shift(ahead, m.Progress.At, m.Passes[0].At)
		lines := Of(m).Timeline
		if off := lines[len(lines)-1].At.Sub(at(500).AsTime()).Abs(); off > 101*time.Millisecond {
			t.Errorf("the clock is %v ms ahead: the first pass is off by %v", ahead, off)
		}
	}
}

// checkOrder holds a story of handedOver against what is true of it.
func checkOrder(t *testing.T, story Story, source, target float64) {
	t.Helper()
	order := []string{
		"is prepared", "pass 1", "gate flipped", "the guest stops", "waits for leave", "gets leave", "has loaded everything", "asks for the commit",
		"has everything and asks", "has the answer", "the guest runs", "runs the guest",
	}
	last := -1
	for _, what := range order {
		i := slices.IndexFunc(story.Timeline, func(line Line) bool { return strings.Contains(line.What, what) })
		if i <= last {
			t.Errorf("%q is line %d, after line %d", what, i, last)
		}
		last = i
	}
	if !slices.IsSortedFunc(story.Timeline, func(a, b Line) int { return a.At.Compare(b.At) }) {
		t.Error("the lines are not in order")
	}
	ahead := map[string]float64{"h1": source, "h2": target}
	for _, one := range story.Shifts {
		if off := one.AheadMs - ahead[one.Clock]; off < -110 || off > 110 { // the first pass began 100 ms after the order
			t.Errorf("the clock of %s is taken to be ahead by %v ms", one.Clock, one.AheadMs)
		}
		delete(ahead, one.Clock)
	}
	for host, ms := range ahead {
		if max(ms, -ms) > 100 {
			t.Errorf("the clock of %s is not corrected", host)
		}
	}
	for _, line := range story.Timeline {
		off := 0.0
		for _, one := range story.Shifts {
			if one.Clock == line.Clock {
				off = one.AheadMs
			}
		}
		if own := line.Own; off == 0 != own.IsZero() || off != 0 && own.Sub(line.At).Seconds()*1000 != off {
			t.Errorf("%q has the time %v, its own is %v, the shift %v ms", line.What, line.At, own, off)
		}
	}
}

// Of two servers, the clock of the second is an hour behind: the story goes on
// from where it was, and nobody says that it is the hosts' clocks.
func TestServersWithClocksApart(t *testing.T) {
	m := handedOver()
	for _, entry := range m.GetStory()[1:] {
		shift(-3_600_000, entry.At)
	}
	m.GetStory()[2].Deadline = at(-3_600_000 + 2017)
	story := Of(m)
	var got []string
	for _, line := range story.Timeline {
		if line.Clock == Server {
			got = append(got, fmt.Sprintf("%v %v", Offset(line.At.Sub(created)), line.Own.IsZero()))
		}
	}
	want := []string{"+0.0000s true", "+0.4000s true", "+0.4000s false", "+0.4090s false", "+0.4130s false", "+0.5920s false"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	i := slices.IndexFunc(story.Timeline, func(line Line) bool { return slices.Contains(line.Led, "timer at +1.4090s: ") })
	if i < 0 {
		t.Errorf("the timer is not on the axis: %+v", story.Timeline)
	}
	if len(story.Clocks) > 0 {
		t.Errorf("the clocks disagree: %v", story.Clocks)
	}
	if i := slices.IndexFunc(story.Shifts, func(one Shift) bool { return one.Clock == Server }); i < 0 || story.Shifts[i].AheadMs != -3_599_392 {
		t.Errorf("the shifts are %v", story.Shifts)
	}
}

// Marks that an agent noted late, when it took over, prove nothing.
func TestLateMarksProveNothing(t *testing.T) {
	m := handedOver()
	s := m.GetSourceMarks()
	s.Stopped, s.PreSwitchover, s.Continued, s.Completed = at(5000), at(5000), at(5000), at(5000)
	story := Of(m)
	if len(story.Clocks) != 0 {
		t.Errorf("the clocks disagree: %+v", story.Clocks)
	}
	late := 0
	for _, line := range story.Timeline {
		if strings.Contains(line.What, "its agent took over here") {
			late++
		}
	}
	if late != 4 {
		t.Errorf("%d marks are told to be late", late)
	}
}

// The axis holds everything, in order.
func TestTimelineIsOneAxis(t *testing.T) {
	m := handedOver()
	lines := Of(m).Timeline
	if want := 1 + len(m.GetStory()) + 1 + 10; len(lines) != want {
		t.Errorf("%d lines, want %d", len(lines), want)
	}
	if !slices.IsSortedFunc(lines, func(a, b Line) int { return a.At.Compare(b.At) }) {
		t.Error("the lines are not in order")
	}
	clocks := map[string]int{}
	for _, line := range lines {
		clocks[line.Clock]++
	}
	if clocks[Server] != 6 || clocks["h1"] != 7 || clocks["h2"] != 4 {
		t.Errorf("clocks %v", clocks)
	}
}

// Of hundreds of passes that are alike only some are told.
func TestManyPasses(t *testing.T) {
	for _, n := range []int{0, 1, firstPasses + lastPasses, firstPasses + lastPasses + 1, 200} {
		m := &godwitv1.Migration{Created: at(0), Source: "h1"}
		for i := range n {
			m.Passes = append(m.Passes, &godwitv1.Pass{Number: int32(i + 1), At: at(float64(10 * i)), RemainingBytes: uint64(i+1) << 20})
		}
		lines := newTeller(m).passes()
		if n <= firstPasses+lastPasses {
			if len(lines) != n {
				t.Errorf("%d passes make %d lines", n, len(lines))
			}
			continue
		}
		want := fmt.Sprintf("passes %d to %d begin, from here to %s, each with %dMiB to %dMiB to be sent again",
			firstPasses+1, n-lastPasses, Offset(time.Duration(n-lastPasses-1)*10*time.Millisecond), firstPasses+1, n-lastPasses)
		if len(lines) != firstPasses+1+lastPasses || lines[firstPasses].What != want {
			t.Errorf("%d passes make %d lines, the middle %q, want %q", n, len(lines), lines[firstPasses].What, want)
		}
	}
}

// Whatever the core knows is told in words, not by its name.
func TestWordsForAll(t *testing.T) {
	teller := newTeller(handedOver())
	for _, kind := range append(migration.Events(), migration.Notes()...) {
		if kind == migration.CopyProgressed {
			continue // passes are told
		}
		if text := teller.event(&godwitv1.StoryEntry{Event: string(kind), Detail: "because"}); strings.Contains(text, string(kind)) {
			t.Errorf("%s has no words", kind)
		}
	}
	for _, kind := range []migration.EffectKind{
		migration.PrepareTarget, migration.StartCopy, migration.ResumeSource, migration.ReleaseTarget,
		migration.RunTarget, migration.RetireSource, migration.ReleaseSource, migration.FinishTarget,
	} {
		if text := task(&godwitv1.Order{Kind: string(kind)}); text == strings.ReplaceAll(string(kind), "-", " ") {
			t.Errorf("%s has no words", kind)
		}
	}
	if text := teller.event(&godwitv1.StoryEntry{Event: "of-a-newer-server", Detail: "because"}); text != "of-a-newer-server: because" {
		t.Errorf("an unknown event is told as %q", text)
	}
	for _, value := range migration.DefaultPolicy(0).Values() {
		if fact := limitFact(&godwitv1.PolicyValue{Name: string(value.Name)}); fact.What == string(value.Name) {
			t.Errorf("%s has no words", value.Name)
		}
	}
}

// The first sentence says where the VM is, and no more than is known.
func TestPlace(t *testing.T) {
	const committed, runs, sourceGone, targetGone, takenBack, ended, lost = 1, 2, 4, 8, 16, 32, 64
	for _, test := range []struct {
		state migration.State
		known int
		want  string
	}{
		{migration.Planned, 0, "web1 is on h1; the move to h2 has not committed."},
		{migration.Preparing, sourceGone, "web1 belongs to h1, where its instance has ended: it is down."},
		{migration.Switching, 0, "web1 stands still: h1 has stopped it, and h2 has not committed yet."},
		{migration.Switching, sourceGone, "web1 stands still: its instance on h1 has ended, and h2 has not committed yet."},
		{migration.Settling, committed, "web1 belongs to h2 since the commit; whether it runs there is not known."},
		{migration.Settling, committed | runs | sourceGone, "web1 was moved from h1 to h2 and runs there."},
		{migration.RollingBack, 0, "web1 stays on h1; the move to h2 is being undone."},
		{migration.RollingBack, committed | takenBack, "web1 stays on h1; the move to h2 is being undone."},
		{migration.Succeeded, 0, "web1 was moved from h1 to h2 and runs there."}, // of an older server
		{migration.Aborted, committed | takenBack, "web1 was not moved: it stays on h1 and runs there."},
		{migration.Aborted, sourceGone, "web1 belongs to h1, where its instance has ended: it is down."},
		{migration.NeedsOperator, 0, "web1 belongs to h1; whether it runs there is not known."},
		{migration.NeedsOperator, committed, "web1 belongs to h2 since the commit; whether it runs there is not known."},
		{migration.Succeeded, committed | runs | ended, "web1 was moved from h1 to h2 and ran there; its instance has ended."},
		{migration.Succeeded, committed | runs | lost, "web1 was moved from h1 to h2 and ran there; its instance has ended."},
		{migration.NeedsOperator, committed | targetGone, "web1 is down: its instance on h2 has ended after the commit, and what h1 has is older."},
	} {
		is := func(flag int) bool { return test.known&flag != 0 }
		m := &godwitv1.Migration{
			Vm: "web1", Source: "h1", Target: "h2", State: string(test.state), Committed: is(committed), TargetRuns: is(runs),
			SourceGone: is(sourceGone), TargetGone: is(targetGone), TakenBack: is(takenBack),
		}
		if is(ended) {
			m.Story = []*godwitv1.StoryEntry{{At: at(9000), Event: string(migration.TargetFailed), State: m.State, Gone: true}}
		}
		if is(lost) {
			m.Story = []*godwitv1.StoryEntry{
				{At: at(9000), Who: "h2", Event: string(migration.HostLost), State: m.State},
				{At: at(9001), Who: "h1", Event: string(migration.SourceReleased), State: m.State},
			}
		}
		if got := Of(m).Summary[0]; got != test.want {
			t.Errorf("%s, known %07b: %q, want %q", test.state, test.known, got, test.want)
		}
	}
}

// A migration that turned back while a host was away says so.
func TestTurnSaysWhoWasAway(t *testing.T) {
	entry := func(ms float64, who string, event migration.EventKind, state migration.State) *godwitv1.StoryEntry {
		return &godwitv1.StoryEntry{At: at(ms), Who: who, Event: string(event), State: string(state), Detail: "too late"}
	}
	m := &godwitv1.Migration{
		Vm: "web1", Source: "h1", Target: "h2", Created: at(0), State: string(migration.Aborted),
		Story: []*godwitv1.StoryEntry{
			entry(1, "server", migration.Started, migration.Preparing), entry(100, "h1", migration.SessionLost, migration.Preparing),
			entry(200, "h1", migration.SessionBack, migration.Preparing), entry(300, "h2", migration.SessionLost, migration.Preparing),
			entry(60_001, "server", migration.TimerFired, migration.RollingBack), entry(61_000, "h2", migration.TargetReleased, migration.Aborted),
		},
	}
	want := "It turned from preparing to rolling-back at +60.0010s: a timer fires: too late." +
		" The agent of h2 had no session with the server then, since +0.3000s."
	if got := Of(m).Summary[1]; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A VM that is given back has another owner once more.
func TestTakenBack(t *testing.T) {
	m := handedOver()
	m.Story = append(m.Story, &godwitv1.StoryEntry{
		At: at(9000), Who: "h2", Event: string(migration.TargetRefused), State: string(migration.RollingBack), Detail: "h1 asked", Withdrawn: []uint64{3},
		Ordered: []*godwitv1.Order{{Sequence: 4, Kind: string(migration.ResumeSource), Host: "h1", Epoch: 9}},
	})
	want := []string{"state rolling-back", "order 3 withdrawn", "taken back: h1 owns web1 again, at epoch 9", "order 4 to h1: end the copy, open the gate, let the guest run on"}
	lines := Of(m).Timeline
	if last := lines[len(lines)-1]; last.What != "has given up its right to run, for good: h1 asked" || !slices.Equal(last.Led, want) {
		t.Errorf("%q led to %q", last.What, last.Led)
	}
}

// What is pending says since when, where that is known.
// A commit that waits is told as one that waits, and when it comes.
func TestUnheldCommit(t *testing.T) {
	asked := &godwitv1.StoryEntry{At: at(10), Event: string(migration.TargetLoaded), State: string(migration.Switching), Who: "h2"}
	sent := &godwitv1.StoryEntry{
		At: at(20), Event: string(migration.SwitchMeasured), State: string(migration.Settling), Who: "h1",
		Ordered: []*godwitv1.Order{{Sequence: 3, Kind: string(migration.RunTarget), Host: "h2"}},
	}
	m := &godwitv1.Migration{
		Vm: "web1", Source: "h1", Target: "h2", Epoch: 3, Created: at(0), Unheld: true,
		State: string(migration.Settling), Story: []*godwitv1.StoryEntry{asked, sent},
	}
	const wait, done = "the commit waits until h1 has sent everything", "committed: h2 owns web1 from here on, at epoch 4"
	led := map[string]string{}
	for _, line := range Of(m).Timeline {
		led[line.What] = strings.Join(line.Led, "\n")
	}
	if text := led["has everything and asks for the commit"]; !strings.Contains(text, wait) || strings.Contains(text, "committed") {
		t.Errorf("asked: %s", text)
	}
	if text := led["has sent everything"]; !strings.Contains(text, done) || strings.Contains(text, wait) {
		t.Errorf("sent: %s", text)
	}
	if facts := fmt.Sprint(decisions(m)); !strings.Contains(facts, "{Commit waits until h1 has sent everything") {
		t.Errorf("decisions: %s", facts)
	}
}

func TestPending(t *testing.T) {
	m := handedOver()
	m.Pending = []*godwitv1.Order{m.Story[0].Ordered[0], {Sequence: 9, Kind: string(migration.ReleaseTarget), Host: "h2", ReturnFrames: true}}
	want := []string{
		"h1: copy the memory, then stop the guest and send the rest (order 2, since +0.4000s)",
		"h2: end the instance, send back the frames that wait, clean up (order 9)",
	}
	if got := Of(m).Pending; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
