package demo

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func plainScreen(w *strings.Builder) screen {
	return screen{w, func(_, text string) string { return text }}
}

var moved = &godwitv1.Migration{
	State: "succeeded", Source: "h1", Target: "h2",
	Outcome: &godwitv1.Outcome{
		TotalMs: 1234, Passes: 3, Bytes: 64 << 20, BlackoutMs: 40, OwnMs: 8, FramesDrained: 2, FramesReturned: 5,
		Phases: []*godwitv1.BlackoutPhase{{Name: "continue", Ms: 0.1}, {Name: "device", Ms: 32}, {Name: "commit", Ms: 8}, {Name: "start"}},
	},
}

func TestTimeline(t *testing.T) {
	var out strings.Builder
	plainScreen(&out).migration(moved, Client{UDPSent: 600, UDPLost: 1, TCPBytes: 1 << 20, LongestGapMs: 51})
	for _, want := range []string{
		"result      succeeded\n", "40.0 ms   no vCPU runs; 8.00 ms are Godwit's, the rest QEMU's",
		"32.0 ms   device      " + strings.Repeat("█", barWidth) + "\n", "8.00 ms   commit      " + strings.Repeat("█", barWidth/4) + "\n",
		"0.10 ms   continue    ▏\n", "0.00 ms   start       \n", "1.23 s   from the request", "600   packets sent: 1 lost, 0 duplicated\n", "51.0 ms   was the longest time without an answer",
		"1MiB   came back on its TCP stream, unbroken", "2   frames that had reached the source's ports", "5   frames that had waited at the target",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
	for line := range strings.Lines(out.String()) {
		if len([]rune(line)) > 80 {
			t.Errorf("a line of %d columns: %s", len([]rune(line)), line)
		}
	}
}

// The keys are what programs rely on.
func TestJSON(t *testing.T) {
	one := describe(moved, Client{UDPSent: 600})
	text, err := json.Marshal(Report{Migrations: []Migration{one}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"migrations":[{"state":"succeeded","source":"h1","target":"h2","total_ms":1234,"passes":3,"bytes":67108864,` +
		`"blackout_ms":40,"blackout_phases_ms":{"commit":8,"continue":0.1,"device":32,"start":0},"own_ms":8,` +
		`"client":{"udp_sent":600,"udp_lost":0,"udp_duplicated":0,"longest_gap_ms":0,"tcp_bytes":0,"tcp_broken":false}}]}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   Spread
	}{
		{nil, Spread{}},
		{[]float64{3}, Spread{3, 3, 3}},
		{[]float64{9, 1, 2}, Spread{1, 2, 9}},
		{[]float64{4, 1, 2, 9}, Spread{1, 3, 9}},
	} {
		if got := SpreadOf(test.values); got != test.want {
			t.Errorf("%v: got %v, want %v", test.values, got, test.want)
		}
	}
}

func TestSummary(t *testing.T) {
	aborted := Migration{State: "aborted", Client: Client{UDPSent: 10, UDPLost: 2}}
	good := Migration{State: "succeeded", TotalMs: 1000, BlackoutMs: 20, Client: Client{UDPSent: 100}}
	cancelled := aborted
	cancelled.want = "aborted"
	var few, many, asked strings.Builder
	plainScreen(&few).summary(Report{Migrations: []Migration{good, aborted}})
	plainScreen(&many).summary(Report{Migrations: []Migration{good, good, good, aborted}})
	plainScreen(&asked).summary(Report{Migrations: []Migration{good, cancelled}})
	if text := asked.String(); !strings.Contains(text, "migrations 2, succeeded 1, cancelled 1 as asked; packets sent") {
		t.Errorf("of a cancelled one: %s", text)
	}
	if text := few.String(); !strings.Contains(text, "migrations 2, succeeded 1, ended otherwise 1; packets sent 110, lost 2, duplicated 0.") || strings.Contains(text, "median") {
		t.Errorf("of few: %s", text)
	}
	if text := many.String(); !strings.Contains(text, "median") || !strings.Contains(text, "1.00 s     1.00 s     1.00 s") {
		t.Errorf("of many: %s", text)
	}
}

func TestDuringGivesTheError(t *testing.T) {
	var out strings.Builder
	failed := errors.New("failed")
	if err := plainScreen(&out).during("working", func() error { return failed }); err != failed {
		t.Errorf("got %v", err)
	}
	if out.String() != "· working\n" {
		t.Errorf("said %q", &out)
	}
}
