package pledge

import (
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func commands(subject string) map[string]*godwitv1.Command {
	return map[string]*godwitv1.Command{
		"start":   {Subject: subject, Op: &godwitv1.Command_StartCopy{}},
		"resume":  {Subject: subject, Op: &godwitv1.Command_ResumeSource{}},
		"retire":  {Subject: subject, Op: &godwitv1.Command_RetireSource{}},
		"release": {Subject: subject, Op: &godwitv1.Command_ReleaseSource{}},
		"run":     {Subject: subject, Op: &godwitv1.Command_RunTarget{}},
		"finish":  {Subject: subject, Op: &godwitv1.Command_FinishTarget{}},
		"undo":    {Subject: subject, Op: &godwitv1.Command_ReleaseTarget{}},
	}
}

// Commands of m1 meet what its own agent keeps, and what another migration or the
// VM's own life has left.
func TestAddressee(t *testing.T) {
	all := "start resume retire release run finish undo"
	cases := []struct {
		what string
		kept Kept
		want string
	}{
		{"its source", Kept{Role: Source, Migration: "m1", Started: true}, all},
		{"its target", Kept{Role: Arriving, Migration: "m1", Started: true}, all},
		{"nothing yet", Kept{Role: Alone, Ended: true}, all},
		{"a VM that runs alone", Kept{Role: Alone, Started: true}, "start resume run"},
		{"one that ended alone", Kept{Role: Alone, Started: true, Ended: true}, "start resume retire release run"},
		{"one that has just come by another", Kept{Role: Arrived, Migration: "m2", Started: true}, "start resume run"},
		{"another's source", Kept{Role: Source, Migration: "m2", Started: true}, "run"},
		{"another's source that has ended", Kept{Role: Source, Migration: "m2", Started: true, Ended: true}, "start resume run"},
		{"another's source that runs on", Kept{Role: RanOn, Migration: "m2", Started: true}, "run"},
		{"another's target", Kept{Role: Arriving, Migration: "m2", Started: true}, ""},
		{"another's target that gave up", Kept{Role: Refused, Migration: "m2", Started: true}, ""},
	}
	for _, c := range cases {
		for name, command := range commands("m1") {
			addressee, _ := AddresseeOf(command, "h1", nil)
			if got, want := addressee.Is(c.kept), strings.Contains(c.want, name); got != want {
				t.Errorf("%s is for %s: %v", name, c.what, got)
			}
		}
	}
}

func TestMeantFor(t *testing.T) {
	instance := &godwitv1.Instance{Uid: "u1"}
	cases := []*godwitv1.Command{
		{Uid: "u1", Op: &godwitv1.Command_StopInstance{}},
		{Op: &godwitv1.Command_ForgetInstance{ForgetInstance: &godwitv1.ForgetInstance{Uid: "u1"}}},
		{Op: &godwitv1.Command_StartInstance{StartInstance: &godwitv1.StartInstance{Instance: instance}}},
		{Op: &godwitv1.Command_PrepareTarget{PrepareTarget: &godwitv1.PrepareTarget{Instance: instance}}},
	}
	for _, command := range cases {
		for uid, want := range map[fleet.InstanceUID]bool{"u1": true, "u2": false, "": true} {
			if got := MeantFor(command, uid); got != want {
				t.Errorf("%v is meant for %q: %v", command, uid, got)
			}
		}
	}
	if !MeantFor(&godwitv1.Command{Op: &godwitv1.Command_StopInstance{}}, "u1") {
		t.Error("a command of an older server is for whoever has the name")
	}
}

func TestSpared(t *testing.T) {
	waits := Kept{Role: Arriving, Migration: "m1", Started: true}
	runs := Kept{Role: Alone, Started: true}
	cases := []struct {
		what      string
		kept      Kept
		state     fleet.InstanceState
		ended     bool
		migration string
		want      bool
	}{
		{"a stale one", runs, "running", false, "", false},
		{"one that was started since it ended", runs, "running", true, "", true},
		{"one that has ended", Kept{Role: Alone, Ended: true}, "exited", true, "", false},
		{"a target that waits", waits, "incoming", false, "m1", false},
		{"a target that has run", waits, "running", false, "m1", true},
		{"another's target", waits, "incoming", false, "m2", true},
		{"one that came by it", runs, "running", false, "m1", true},
		{"one whose record can't be read", Kept{Role: Alone, Started: true, Unread: true}, "running", false, "", true},
		{"one that runs on", Kept{Role: RanOn, Migration: "m1", Started: true}, "running", false, "", true},
		{"one that ran on and ended", Kept{Role: RanOn, Migration: "m1", Started: true, Ended: true}, "exited", false, "", false},
	}
	for _, c := range cases {
		if why := c.kept.Spared(c.state, c.ended, c.migration); (why != "") != c.want {
			t.Errorf("%s is spared: %q", c.what, why)
		}
	}
}

// Whatever would run a target that has given up, or end it before its frames were
// returned, is refused. It is released, and told to run, which it answers itself.
func TestRefuses(t *testing.T) {
	all := commands("m1")
	all["prepare"] = &godwitv1.Command{Subject: "m1", Op: &godwitv1.Command_PrepareTarget{}}
	for name, command := range all {
		want := name != "run" && name != "undo"
		if got := (Kept{Role: Refused, Migration: "m1", Started: true}).Refuses(command); (got != nil) != want || got != nil && !Failed(got) {
			t.Errorf("%s is refused: %v", name, got)
		}
		got := (Kept{Role: Refused, Migration: "m1", Started: true, Ended: true}).Refuses(command).GetTargetFailed()
		if got != nil && (!got.GetGone() || !got.GetUnrun()) {
			t.Errorf("%s is refused by one that has ended: %v", name, got)
		}
		if got := (Kept{Role: Arriving, Migration: "m1", Started: true}).Refuses(command); got != nil {
			t.Errorf("%s is refused by one that has not given up: %v", name, got)
		}
	}
}

func TestTakesStart(t *testing.T) {
	cases := []struct {
		kept   Kept
		opened bool
		want   bool
	}{
		{Kept{Role: Alone, Ended: true}, false, true},
		{Kept{Role: Source, Migration: "m1", Started: true}, false, true},
		{Kept{Role: Arrived, Migration: "m1", Started: true}, true, true},
		{Kept{Role: Arriving, Migration: "m1", Started: true}, false, false},
		{Kept{Role: Arriving, Migration: "m1", Started: true}, true, true},
		{Kept{Role: Arriving, Migration: "m1", Ended: true}, true, false},
		{Kept{Role: Refused, Migration: "m1", Started: true}, false, false},
	}
	for _, c := range cases {
		if got := c.kept.TakesStart(c.opened); got != c.want {
			t.Errorf("%+v, opened %v, takes a start: %v", c.kept, c.opened, got)
		}
	}
}
