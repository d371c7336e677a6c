package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"godwit.dev/godwit/internal/lab"
)

func TestEveryCellIsRunOrSaysWhyNot(t *testing.T) {
	cells := matrix(faults, victims, states)
	if len(cells) != 5*12*5 {
		t.Errorf("%d cells", len(cells))
	}
	for _, test := range []struct {
		cell cell
		lab  size
		runs bool
	}{
		{cell{sigkill, sourceAgent, copying}, size{1, 1}, true},
		{cell{sigkill, hostLink, copying}, size{1, 3}, false},
		{cell{twoWay, hostLink, copying}, size{1, 1}, true},
		{cell{restart, targetQEMU, copying}, size{1, 3}, false},
		{cell{sigstop, sourceQEMU, settling}, size{1, 3}, true},
		{cell{oneWay, sourceQEMU, settling}, size{1, 3}, false},
		{cell{oneWay, targetQEMU, afterCommit}, size{1, 3}, false},
		{cell{sigkill, etcdMember, copying}, size{1, 1}, false},
		{cell{sigkill, etcdMember, copying}, size{1, 3}, true},
		{cell{oneWay, etcdQuorum, copying}, size{1, 1}, false},
		{cell{oneWay, etcdQuorum, copying}, size{1, 3}, true},
		{cell{oneWay, allServers, copying}, size{1, 1}, false},
		{cell{oneWay, serverLeader, copying}, size{1, 3}, false},
		{cell{oneWay, serverLeader, copying}, size{3, 3}, true},
		{cell{oneWay, allServers, copying}, size{1, 3}, true},
	} {
		if why := test.cell.lacks(test.lab); (why == "") != test.runs {
			t.Errorf("%s with %+v: %q", test.cell, test.lab, why)
		}
	}
	for _, c := range cells { // what is run has something to cut
		if c.lacks(size{1, 3}) == "" && c.Fault.cuts() && len(plane{size: size{1, 3}}.paths(c.Victim)) == 0 {
			t.Errorf("%s cuts nothing", c)
		}
	}
}

func TestPaths(t *testing.T) {
	got := plane{size: size{1, 3}}.paths(etcdQuorum)
	want := []direction{{"control2", "control", lab.AllTraffic}, {"control3", "control", lab.AllTraffic}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	leader := plane{size: size{3, 3}, leader: 1}.paths(serverLeader)
	if len(leader) != 5 || leader[0] != (direction{"control2", "control", lab.AllTraffic}) || leader[1].to != "control3" {
		t.Errorf("the leader's: %v", leader)
	}
	member := plane{size: size{1, 3}, first: 1}.paths(etcdMember)
	if want := between([]string{"control2"}, []string{"control", "control3"}, lab.AllTraffic); !reflect.DeepEqual(member, want) {
		t.Errorf("the member's: %v, want %v", member, want)
	}
	for members, want := range map[int]int{1: 0, 2: 1, 3: 1, 5: 2} {
		if got := (size{1, members}).survivors(); got != want {
			t.Errorf("of %d members %d are left, want %d", members, got, want)
		}
	}
}

func TestReportKeepsOtherCells(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out", "faults.json")
	if r, err := load(path); err != nil || len(r.Cells) > 0 {
		t.Fatalf("without a file: %+v: %v", r, err)
	}
	late, early := cell{restart, allServers, settling}, cell{sigkill, sourceQEMU, preparing}
	var r report
	r.put(result{cell: late, Ran: true, Final: "succeeded"})
	r.put(notRun(early, "a reason"))
	r.put(result{cell: late, Ran: true, Final: "aborted", Violations: []string{"something"}})
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	again, err := load(path)
	if err != nil || !reflect.DeepEqual(again, r) {
		t.Fatalf("%+v, want %+v: %v", again, r, err)
	}
	if len(r.Cells) != 2 || r.Cells[0].cell != early || r.violations() != 1 {
		t.Errorf("%+v", r.Cells)
	}
	if _, known := r.find(early); known {
		t.Error("a cell that was not run is not run again")
	}
	if one, known := r.find(late); !known || one.Final != "aborted" {
		t.Errorf("found %+v", one)
	}
	if chosen := r.only([]cell{late}); len(chosen.Cells) != 1 {
		t.Errorf("chosen: %+v", chosen)
	}
	if own, other := r.ofBuild("newer"); own.Build != "newer" || len(own.Cells) != 0 || other != 2 {
		t.Errorf("of another build: %+v, %d others", own, other)
	}
	if own, other := r.ofBuild(r.Build); len(own.Cells) != 2 || other != 0 {
		t.Errorf("of this build: %+v, %d others", own, other)
	}
}

// A cell that was tried and never hit is no cell that is shown impossible.
func TestMissedCellsCount(t *testing.T) {
	missed, impossible := notRun(cell{restart, allServers, settling}, "not hit"), notRun(cell{sigkill, sourceQEMU, preparing}, "a reason")
	missed.Tries = maxTries
	var r report
	r.put(missed)
	r.put(impossible)
	if n := r.missed(); n != 1 {
		t.Errorf("%d cells were missed, want 1", n)
	}
}

// Who reads the file finds every field of every cell, also of those that were not run.
func TestReportOmitsNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "faults.json")
	var r report
	r.put(notRun(cell{sigkill, sourceQEMU, preparing}, "a reason"))
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cells []map[string]any `json:"cells"`
	}
	if err := json.Unmarshal(text, &file); err != nil || len(file.Cells) != 1 {
		t.Fatalf("%s: %v", text, err)
	}
	for _, field := range []string{
		"fault", "victim", "state", "ran", "why", "hit", "tries", "final", "cause", "runs_on", "pause_ms", "settled_ms", "violations",
	} {
		if value, has := file.Cells[0][field]; !has || value == nil {
			t.Errorf("%s is %v", field, value)
		}
	}
}

func TestFlagsSelectCells(t *testing.T) {
	o, err := parse([]string{"--fault", "SIGKILL,restart", "--victim", "all-servers", "--state", "copying"})
	want := []cell{{sigkill, allServers, copying}, {restart, allServers, copying}}
	if err != nil || !slices.Equal(o.cells, want) {
		t.Errorf("%v, want %v: %v", o.cells, want, err)
	}
	for _, wrong := range [][]string{{"--fault", "SIGNONE"}, {"--state", ""}, {"--repeat", "0"}, {"copying"}} {
		if o, err := parse(wrong); err == nil {
			t.Errorf("%q: %v", wrong, o.cells)
		}
	}
}

func TestLastSaid(t *testing.T) {
	log := "time=2026-01-02T03:04:05.000Z level=INFO msg=\"this server leads\" url=a\n" +
		"time=2026-01-02T03:04:06.000Z level=INFO msg=\"this server leads\" url=a\n" +
		"time=2026-01-02T03:04:07.000Z level=INFO msg=\"this server leads no more\"\n"
	if got := lastSaid(log, leads); got != "time=2026-01-02T03:04:06.000Z" {
		t.Errorf("got %q", got)
	}
	if got := lastSaid("nothing\n", leads); got != "" {
		t.Errorf("got %q", got)
	}
}

// TestBystander: the lab's own questions go where the fault is not.
func TestBystander(t *testing.T) {
	for _, test := range []struct {
		plane plane
		want  int
	}{
		{plane{size: size{3, 3}, leader: 0, first: 1}, 2},
		{plane{size: size{3, 3}, leader: 1, first: 1}, 0},
		{plane{size: size{2, 3}, leader: 0, first: 1}, 1},
	} {
		if got := test.plane.bystander(); got != test.want {
			t.Errorf("of %+v: %d, want %d", test.plane, got, test.want)
		}
	}
}

func TestDifferences(t *testing.T) {
	before := map[string][]string{"h1": {"device lo", "file a", "process x"}, "h2": {"device lo"}}
	after := map[string][]string{"h1": {"device lo", "process x", "process x"}, "h2": {"device lo"}}
	want := []string{"h1: -1 file a", "h1: +1 process x"}
	if got := differences(before, after); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := differences(before, before); got != nil {
		t.Errorf("got %q of the same", got)
	}
}

// TestSurvivable: nothing that a VM or a packet may be lost by.
func TestSurvivable(t *testing.T) {
	for _, c := range survivable(size{3, 3}) {
		if c.Victim == hostLink || c.Victim.isQEMU() && c.Fault == sigkill {
			t.Errorf("%s %s is among them", c.Fault, c.Victim)
		}
	}
	if n := len(survivable(size{3, 3})); n < 25 {
		t.Errorf("only %d faults to choose from", n)
	}
}
