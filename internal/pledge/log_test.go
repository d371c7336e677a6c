package pledge

import (
	"fmt"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func told(subject string, sequence uint64) *godwitv1.Command {
	return &godwitv1.Command{Subject: subject, Sequence: sequence, Op: &godwitv1.Command_FinishTarget{}}
}

func TestCommandLog(t *testing.T) {
	var l Log
	begin := func(subject string, sequence uint64, present string) string {
		answer, known := l.Begin(told(subject, sequence), present)
		return fmt.Sprint(answer != nil, known)
	}
	steps := []struct {
		what, got, want string
	}{
		{"new", begin("m1", 1, ""), "false false"},
		{"again", begin("m1", 1, ""), "false true"},
		{"another of its sequence", begin("m2", 1, ""), "false false"},
		{"another sequence", begin("m1", 2, ""), "false false"},
	}
	for _, step := range steps {
		if step.got != step.want {
			t.Errorf("%s: answered and known are %s, want %s", step.what, step.got, step.want)
		}
	}
	l.End(told("m1", 1), &godwitv1.Report{})
	if got := begin("m1", 1, ""); got != "true true" {
		t.Errorf("answered: %s", got)
	}
	l.Forget(told("m1", 2))
	if got := begin("m1", 2, ""); got != "false false" {
		t.Errorf("forgotten: %s", got)
	}
	l.End(told("m3", 1), &godwitv1.Report{}) // of one that has gone meanwhile
}

// A VM that moves all its life must not fill its host's memory, nor is what it
// does now forgotten for it.
func TestCommandLogIsBounded(t *testing.T) {
	var l Log
	const present = "m-0"
	for i := range 1000 {
		if _, known := l.Begin(told(fmt.Sprint("m-", i), 1), present); known {
			t.Fatalf("m-%d is known", i)
		}
	}
	if len(l.subjects) != subjectsMax {
		t.Errorf("it holds %d migrations, want %d", len(l.subjects), subjectsMax)
	}
	for _, subject := range []string{present, "m-999", fmt.Sprint("m-", 1000-subjectsMax+1)} {
		if _, known := l.Begin(told(subject, 1), present); !known {
			t.Errorf("%s is forgotten", subject)
		}
	}
}
