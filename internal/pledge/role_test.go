package pledge

import (
	"fmt"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func TestRoles(t *testing.T) {
	cases := []struct {
		role                Role
		run                 Run
		shut, open          GiveUp // asked to give up, behind a gate that is shut, or open
		runsOn, writesFirst bool
		state               fleet.InstanceState
	}{
		{Alone, RunsAlready, KeepsOwns, KeepsOwns, false, false, "running"},
		{Source, RunsAlready, KeepsOwns, KeepsOwns, true, true, "paused"},
		{RanOn, RunsAlready, KeepsOwns, KeepsOwns, true, false, "running"},
		{Arriving, RunNow, GivesUp, KeepsOwns, false, false, "incoming"},
		{Arrived, RunsAlready, KeepsOwns, KeepsOwns, false, false, "running"},
		{Refused, RunNever, GaveUp, GaveUp, false, false, "exited"},
	}
	for _, want := range cases {
		r := want.role
		if got := r.Run(); got != want.run {
			t.Errorf("%s with the right to run: %s", r, got)
		}
		shut, open := r.GiveUp(r.MayHaveRun(false)), r.GiveUp(r.MayHaveRun(true))
		if shut != want.shut || open != want.open {
			t.Errorf("%s asked to give up: %s with its gate shut, %s with it open", r, shut, open)
		}
		if runs, writes := r.RunOn("m1", "m1"); runs != want.runsOn || writes != want.writesFirst {
			t.Errorf("%s runs on: %v, written first: %v", r, runs, writes)
		}
		if runs, _ := r.RunOn("m2", "m1"); runs {
			t.Errorf("%s of another migration runs on", r)
		}
		if got := r.State(false, false); got != want.state || r.State(true, false) != "exited" {
			t.Errorf("%s is said to be %s, and %s when it has ended", r, got, r.State(true, false))
		}
	}
	// Its agent ended before it wrote down that the target runs.
	if got := Arriving.State(false, true); got != "running" {
		t.Errorf("a target whose gate is open is said to be %s", got)
	}
}

func TestDecided(t *testing.T) {
	failed := func(code fleet.Code) error { return &fleet.Error{Code: code} }
	cases := []struct {
		answer fleet.Epoch
		err    error
		want   Decision
	}{
		{2, nil, Granted},
		{3, nil, AskAgain},
		{0, failed(fleet.Conflict), Denied},
		{0, failed(fleet.Denied), Denied},
		{0, failed(fleet.Unavailable), AskAgain},
		{0, failed(fleet.NotFound), AskAgain},
		{2, failed(fleet.Deadline), AskAgain},
	}
	for _, c := range cases {
		if got := Decided(2, c.answer, c.err); got != c.want {
			t.Errorf("epoch %d, %v: %s, want %s", c.answer, c.err, got, c.want)
		}
	}
}

func TestAddresseeOf(t *testing.T) {
	resume := &godwitv1.Command{Epoch: 3, Op: &godwitv1.Command_ResumeSource{ResumeSource: &godwitv1.ResumeSource{Vm: "web", NewEpoch: 5}}}
	run := &godwitv1.Command{Epoch: 3, Op: &godwitv1.Command_RunTarget{RunTarget: &godwitv1.RunTarget{Vm: "web"}}}
	release := &godwitv1.Command{Epoch: 3, Op: &godwitv1.Command_ReleaseTarget{ReleaseTarget: &godwitv1.ReleaseTarget{Vm: "web"}}}
	cases := []struct {
		what    string
		command *godwitv1.Command
		has     fleet.Epoch
		want    string
	}{
		{"a source", resume, 3, "3 true true"},
		{"a source that was renumbered", resume, 5, "5 true true"},
		{"a target", run, 4, "4 true true"},
		{"a target that is to go", release, 4, "4 false false"},
	}
	for _, c := range cases {
		addressee, known := AddresseeOf(c.command, "h1", func(_ fleet.VMName, epoch fleet.Epoch) bool { return epoch == c.has })
		got := fmt.Sprint(addressee.Epoch, Failed(addressee.Absent), Failed(addressee.Foreign))
		if !known || addressee.VM != "web" || got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if _, known := AddresseeOf(&godwitv1.Command{Op: &godwitv1.Command_StartInstance{}}, "h1", nil); known {
		t.Error("a start follows no preparation")
	}
}
