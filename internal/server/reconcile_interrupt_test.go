package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
)

// Whatever is interrupted, what a host has not answered is sent to it again,
// with the same sequence, and the migration ends as it would have.
func TestInterruptions(t *testing.T) {
	t.Parallel()
	interrupts := map[string]func(f *testFleet, fl *flight) *testFleet{
		"agents reconnect": func(f *testFleet, fl *flight) *testFleet {
			fl.source.close()
			fl.target.close()
			return f
		},
		"server restarts": func(f *testFleet, fl *flight) *testFleet {
			f.stop()
			f.start()
			return f
		},
		"another server leads": func(f *testFleet, fl *flight) *testFleet { return f.succeeded() },
	}
	stages := []struct {
		name string
		want map[string][]string // to whom what is sent again
	}{
		{inPrepare, map[string][]string{"h2": {"prepare_target"}}},
		{inCopy, map[string][]string{"h1": {"start_copy"}}},
		{inSwitch, map[string][]string{"h1": {"start_copy"}}},
		{inRun, map[string][]string{"h1": {"start_copy"}, "h2": {"run_target"}}},
		{inRetire, map[string][]string{"h1": {"start_copy", "retire_source"}}},
		{inResume, map[string][]string{"h1": {"resume_source"}}},
		{inRelease, map[string][]string{"h2": {"release_target"}}},
	}
	for name, interrupt := range interrupts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, _ := newReplicas(t, 1)
			h1, h2 := f.join("h1", roomy), f.join("h2", roomy)
			for i, stage := range stages {
				fl := f.fly(h1, h2, fmt.Sprintf("web%d", i), testPolicy())
				fl.to(stage.name)
				before := fl.record()
				f = interrupt(f, fl)
				fl.testFleet = f
				h1, h2 = f.join("h1", roomy), f.join("h2", roomy)
				fl.source, fl.target = h1, h2
				for _, agent := range []*fakeAgent{h1, h2} {
					fl.expectAgain(stage.name, agent, before, stage.want[agent.name])
				}
				end := fl.finishAgain(stage.name)
				if stage.name == inResume || stage.name == inRelease {
					fl.atSource(t)
				} else {
					fl.atTarget(t)
				}
				if again := commandsOf(end, before); again != "" {
					t.Errorf("%s: %s", stage.name, again)
				}
			}
		})
	}
}

// expectAgain takes what is sent to a host after an interruption; each may
// come more than once.
func (fl *flight) expectAgain(stage string, agent *fakeAgent, before migration.Migration, want []string) {
	fl.t.Helper()
	left := map[uint64]string{}
	var pending []string
	for _, effect := range before.Pending {
		if op := strings.ReplaceAll(string(effect.Kind), "-", "_"); string(effect.Host) == agent.name {
			left[effect.Sequence] = op
			pending = append(pending, op)
		}
	}
	if !slices.Equal(pending, want) {
		fl.t.Fatalf("%s: pending for %s is %v, want %v", stage, agent.name, pending, want)
	}
	for seen := map[uint64]bool{}; len(seen) < len(left); {
		command := agent.command()
		if command.GetSubject() != fl.id {
			continue // what is left of an earlier flight
		}
		if op := left[command.GetSequence()]; op != opOf(command) {
			fl.t.Fatalf("%s: %s got %v, want %v", stage, agent.name, command, left)
		}
		seen[command.GetSequence()] = true
	}
}

// finishAgain goes on as an agent does that has journalled what it took: it
// answers the pending command that expectAgain saw.
func (fl *flight) finishAgain(stage string) *godwitv1.Migration {
	fl.t.Helper()
	pending := fl.record().Pending
	last := pending[len(pending)-1] // start_copy may wait beside it
	answer := func(agent *fakeAgent, op string) {
		fl.done[last.Sequence] = true
		fl.say(agent, &godwitv1.Command{Sequence: last.Sequence}, usualAnswer(op))
	}
	switch stage {
	case inPrepare:
		answer(fl.target, "prepare_target")
		fl.next(fl.source, "start_copy")
		return fl.finish(inCopy)
	case inRun:
		answer(fl.target, "run_target")
		return fl.finish(inRetire)
	case inRetire:
		fl.measure()
		answer(fl.source, "retire_source")
		fl.answer(fl.source, "release_source")
		fl.answer(fl.target, "finish_target")
		return fl.await(migration.Succeeded)
	case inResume:
		answer(fl.source, "resume_source")
		return fl.finish(inRelease)
	case inRelease:
		answer(fl.target, "release_target")
		return fl.await(migration.Aborted)
	}
	return fl.finish(stage)
}

// commandsOf says what is wrong with the story of an interrupted flight: every
// event must be in it once; notes may come again.
func commandsOf(end *godwitv1.Migration, before migration.Migration) string {
	seen := map[string]int{}
	for _, entry := range end.GetStory() {
		if slices.Contains(migration.Notes(), migration.EventKind(entry.GetEvent())) {
			continue
		}
		if seen[entry.GetEvent()]++; seen[entry.GetEvent()] > 1 {
			return entry.GetEvent() + " happened twice"
		}
	}
	if len(end.GetStory()) <= len(before.Story) {
		return "nothing happened after the interruption"
	}
	return ""
}
