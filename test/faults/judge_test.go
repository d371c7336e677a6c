package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
)

var (
	one   = netip.MustParseAddr("10.77.0.11")
	other = netip.MustParseAddr("10.77.0.12")
)

// moved is the evidence of a migration in which all is well.
func moved() evidence {
	begun := time.Now()
	e := evidence{source: one, target: other, movedTo: true, client: probe.UDPResult{Sent: 4}, disks: []written{{name: "a"}, {name: "b", acknowledged: 4}}}
	for i := range uint64(4) {
		at := begun.Add(time.Duration(i) * time.Second)
		host := one
		if i > 1 {
			host = other
		}
		e.frames = append(e.frames, sighting{at: at, host: host, reply: &witness.Packet{
			Counter: i + 1, Nonce: 100 + i, Written: i, WrittenNonce: 200 + i,
		}})
		record := witness.Record{Sequence: i + 1, Nonce: 201 + i}
		for d := range e.disks {
			disk := &e.disks[d]
			disk.first, disk.last, disk.at = append(disk.first, record), append(disk.last, record), append(disk.at, at)
		}
	}
	return e
}

func (e evidence) findings(mayLose uint64) []string {
	var f findings
	e.checkEpochs(&f)
	e.checkReplies(&f)
	e.checkDisks(&f)
	e.checkPackets(&f, mayLose)
	return f.list
}

// Each check finds what it is for, and nothing where all is well.
func TestChecks(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*evidence)
		want   string
	}{
		{"nothing", func(*evidence) {}, ""},
		{"the source after the target", func(e *evidence) { e.frames[3].host = one }, "never two: a frame left the source"},
		{"a target without the right", func(e *evidence) { e.movedTo = false }, "never two: a frame left the target"},
		{"a stranger", func(e *evidence) { e.frames[0].host = netip.MustParseAddr("10.77.0.13") }, "never two"},
		{"a reply's number twice", func(e *evidence) { e.frames[3].reply.Counter = 2 }, "ran twice: the guest"},
		{"one reply twice", func(e *evidence) { *e.frames[3].reply = *e.frames[2].reply }, ""}, // the client counts these
		{"a record twice", func(e *evidence) { e.disks[0].first[3].Nonce = 1 }, "ran twice: record 4"},
		{"a record gone", func(e *evidence) { e.disks[0].last[3] = witness.Record{} }, "write lost: record 4 is not"},
		{"an acknowledged record missing", func(e *evidence) { e.disks[0].first, e.disks[0].last = e.disks[0].first[:2], e.disks[0].last[:2] }, "write lost: record 3 was acknowledged"},
		{"an acknowledged record replaced", func(e *evidence) { e.disks[0].first[1].Nonce, e.disks[0].last[1].Nonce = 1, 1 }, "write lost: record 2 was acknowledged with"},
		{"a record of the other disk gone", func(e *evidence) { e.disks[1].last[3] = witness.Record{} }, "write lost: record 4 is not on disk b"},
		{"one that it acknowledged missing", func(e *evidence) { e.disks[1].acknowledged = 5 }, "write lost: record 5 was acknowledged by disk b"},
		{"a reply doubled", func(e *evidence) { e.client.Duplicated = 1 }, "packet doubled"},
		{"a packet doubled", func(e *evidence) { e.doubled = 1 }, "packet doubled"},
		{"a packet lost", func(e *evidence) { e.client.Lost = 1 }, "packet lost"},
		{"a packet broken", func(e *evidence) { e.client.Corrupted = 1 }, "packet broken"},
		{"another boot", func(e *evidence) { e.client.Reboots = 1 }, "packet broken"},
	} {
		e := moved()
		test.change(&e)
		found := e.findings(0)
		if test.want == "" && len(found) > 0 || test.want != "" && (len(found) == 0 || !strings.HasPrefix(found[0], test.want)) {
			t.Errorf("%s: found %q, want %q", test.name, found, test.want)
		}
	}
	var many findings
	for range 10 {
		many.add("kind", "something")
	}
	if len(many.list) != sayMost {
		t.Errorf("%d of one kind", len(many.list))
	}
}

// A host that sends once more after its turn has taken one that nobody gave.
func TestTurns(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*evidence)
		most   int
		want   bool // a violation
	}{
		{"one migration", func(*evidence) {}, 1, false},
		{"one that was taken back", func(e *evidence) { e.frames[3].host = one }, 2, false},
		{"the source after the target", func(e *evidence) { e.frames[3].host = one }, 1, true},
		{"a target without the right", func(*evidence) {}, 0, true},
		{"a stranger", func(e *evidence) { e.frames[0].host = netip.MustParseAddr("10.77.0.13") }, 1, true},
	} {
		e := moved()
		test.change(&e)
		var found findings
		if e.checkTurns(&found, test.most); len(found.list) > 0 != test.want {
			t.Errorf("%s: %q", test.name, found.list)
		}
	}
}

// A link that was cut excuses what was sent meanwhile, and no more.
func TestMayLose(t *testing.T) {
	const cut = 5 * time.Second
	for _, test := range []struct {
		cell cell
		lost uint64
		want bool // a violation
	}{
		{cell{Victim: hostLink, Fault: twoWay, State: beforeCommit}, 6 * rate, false},
		{cell{Victim: hostLink, Fault: twoWay, State: beforeCommit}, 6*rate + 1, true},
		{cell{Victim: hostLink, Fault: oneWay, State: settling}, 6*rate + 1, true},
		{cell{Victim: hostLink, Fault: twoWay, State: copying}, 1, true},
		{cell{Victim: targetAgent, Fault: twoWay, State: settling}, 1, true},
		{cell{Victim: sourceQEMU, Fault: sigkill, State: copying}, 100 * rate, false},
	} {
		e := moved()
		e.client.Sent, e.client.Lost = 1000*rate, test.lost
		if found := e.findings(test.cell.mayLose(cut)); len(found) > 0 != test.want {
			t.Errorf("%v has lost %d: %q", test.cell, test.lost, found)
		}
	}
}

func TestLongestGapOfDisk(t *testing.T) {
	begun := time.Now()
	second := func(n int) time.Time { return begun.Add(time.Duration(n) * time.Second) }
	w := written{at: []time.Time{second(1), second(2), second(5), second(6)}}
	for _, test := range []struct{ from, to, want int }{{1, 7, 3}, {5, 10, 4}, {0, 2, 1}, {7, 9, 2}} {
		if got := w.longestGap(second(test.from), second(test.to)); got != time.Duration(test.want)*time.Second {
			t.Errorf("from %d to %d: %s, want %d s", test.from, test.to, got, test.want)
		}
	}
}
