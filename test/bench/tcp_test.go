package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// iperfText is what iperf3 3.12 prints, less what is not read.
const iperfText = `{
	"start": {"connected": [{"socket": 5, "local_port": 39714}], "version": "iperf 3.12"},
	"intervals": [
		{"streams": [{"socket": 5, "bytes": 10000000}], "sum": {"start": 0, "end": 0.100036, "seconds": 0.100036, "bytes": 10000000, "retransmits": 2, "omitted": false, "sender": true}},
		{"streams": [{"socket": 5, "bytes": 0}], "sum": {"start": 0.100036, "end": 0.200036, "seconds": 0.1, "bytes": 0, "retransmits": 1, "omitted": false, "sender": true}},
		{"streams": [{"socket": 5, "bytes": 7}], "sum": {"start": 0.200036, "end": 0.201036, "seconds": 0.001, "bytes": 7, "retransmits": 0, "omitted": false, "sender": true}}
	],
	"end": {"sum_sent": {"seconds": 0.2, "bytes": 10000007, "retransmits": 3, "sender": true}, "sum_received": {"bytes": 9000000}}
}`

func TestFlowIsParsed(t *testing.T) {
	result, err := parseFlow([]byte(iperfText))
	if err != nil {
		t.Fatal(err)
	}
	var r tcpRun
	r.fill(result)
	if len(r.Intervals) != 2 || r.Retransmits != 3 {
		t.Fatalf("%d intervals, %d retransmits", len(r.Intervals), r.Retransmits)
	}
	if one := r.Intervals[0]; math.Abs(one.MBs-99.96) > 0.01 || one.AtS != 0 || r.Intervals[1].AtS != 0.100036 {
		t.Errorf("intervals are %+v", r.Intervals)
	}
	if r.Broken == "" {
		t.Error("a flow that ends before the migration is not broken")
	}
}

func TestFlowsThatAreNoneAreRefused(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":        "iperf3: error",
		"no intervals":   `{"end": {"sum_sent": {"retransmits": 0}, "sum_received": {"bytes": 1}}}`,
		"no retransmits": strings.Replace(iperfText, `"retransmits": 3, `, "", 1),
		"none received":  strings.Replace(iperfText, `9000000`, "0", 1),
	} {
		if _, err := parseFlow([]byte(text)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	result, err := parseFlow([]byte(`{"intervals": [], "end": {}, "error": "unable to receive"}`))
	if err != nil || result.Error != "unable to receive" {
		t.Errorf("a broken flow is %+v: %v", result, err)
	}
}

func TestWhyAFlowDidNotBegin(t *testing.T) {
	for text, again := range map[string]bool{
		`{"error": "unable to connect to server: Connection refused"}`:               true,
		`{"error": "unable to receive control message: Connection reset by peer"}`:   true,
		`{"error": "unable to connect to server: No route to host"}`:                 false,
		`{"error": "error - the server is busy running a test. try again later"}`:    true,
		`iperf3: parameter error - test duration too long (maximum = 86400 seconds)`: false,
	} {
		if err := whyEnded(nil, []byte(text)); err == nil || errors.Is(err, errNotTaken) != again {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// rates gives intervals of a tenth of a second.
func rates(mbs ...float64) (all []tcpInterval) {
	for i, rate := range mbs {
		all = append(all, tcpInterval{AtS: float64(i) / 10, MBs: rate, seconds: 0.1})
	}
	return all
}

func TestDip(t *testing.T) {
	for name, test := range map[string]struct {
		rates                []float64
		from                 float64
		lowest, longest, sum float64
	}{
		"none":                   {[]float64{100, 100, 60, 50, 100}, 0.05, 50, 0, 0},
		"one":                    {[]float64{100, 100, 10, 49, 100}, 0.05, 10, 200, 200},
		"two":                    {[]float64{100, 100, 10, 60, 0, 0, 3, 100, 20}, 0.05, 0, 300, 500},
		"before it is no dip":    {[]float64{0, 0, 100, 100}, 0.25, 100, 0, 0},
		"the one it begins in":   {[]float64{0, 20, 100, 100}, 0.15, 20, 100, 100},
		"until the flow's end":   {[]float64{100, 100, 0, 0}, 0.05, 0, 200, 200},
		"more than before, only": {[]float64{100, 300}, 0.15, 100, 0, 0},
	} {
		lowest, longest, sum := dip(rates(test.rates...), test.from, 100)
		if lowest != test.lowest || math.Abs(longest-test.longest) > 1e-6 || math.Abs(sum-test.sum) > 1e-6 {
			t.Errorf("%s: lowest %v, longest %v ms, all %v ms", name, lowest, longest, sum)
		}
	}
}

func TestThroughput(t *testing.T) {
	all := rates(1000, 100, 200, 1000)
	if got := throughput(all, 0.05, 0.35); got != 150 {
		t.Errorf("%v MB/s, not the mean of those between", got)
	}
	if got := throughput(all, 0.11, 0.19); got != 0 {
		t.Errorf("%v MB/s between two times without an interval", got)
	}
}

func TestDevicesAreSummed(t *testing.T) {
	text := "Inter-|   Receive                                                |  Transmit\n" +
		" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
		"    lo:     500       5    0    0    0     0          0         0      500       5    0    0    0     0       0          0\n" +
		"  eth0:    1000      10    0    0    0     0          0         0       20       1    0    0    0     0       0          0\n" +
		"fabric:       3       1    0    0    0     0          0         0        4       1    0    0    0     0       0          0\n"
	if sum, err := sumDevices(text); err != nil || sum != 1027 {
		t.Errorf("%d bytes: %v", sum, err)
	}
	if sum, err := sumDevices(strings.Replace(text, "1000", "many", 1)); err == nil {
		t.Errorf("many bytes are %d", sum)
	}
}

// moved is a flow of Godwit's with a migration.
func moved(network, direction string) tcpRun {
	return tcpRun{
		Network: network, Direction: direction, Who: "godwit", BeforeMBs: 100, AfterMBs: 90, DipMs: 200, Intervals: rates(100, 0, 90),
		Migration: &tcpMigration{RequestedAtS: 0.05, StoppedAtS: 0.1, ResumedAtS: 0.15, BlackoutMs: 50, TotalMs: 100},
	}
}

func TestTCPReport(t *testing.T) {
	torn := moved("overlay", "to-guest")
	torn.Broken = "control socket has closed"
	peer := torn
	peer.Who = "qemu"
	report := summarizeTCP(0, []tcpRun{moved("overlay", "to-guest"), peer})
	if broken(report.Targets) != nil {
		t.Errorf("Godwit is blamed for another's: %v", report.Targets)
	}
	report = summarizeTCP(0, []tcpRun{moved("overlay", "to-guest"), torn, peer})
	if broken(report.Targets) == nil {
		t.Errorf("a broken connection is no fault: %v", report.Targets)
	}
	var out bytes.Buffer
	report.print(screen{&out})
	if lines := strings.Split(out.String(), "\n"); !strings.HasPrefix(lines[2], "overlay to-guest, godwit") || !strings.HasSuffix(lines[2], " 50.0       1") {
		t.Errorf("the table is\n%s", out.String())
	}
	got := readBack(t, report)
	if len(got) != 3 || got[0]["before_mb_s"] != 100.0 || got[0]["migration"].(map[string]any)["blackout_ms"] != 50.0 {
		t.Errorf("read back %v", got)
	}
}

func TestTCPPlot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plot.svg")
	without := moved("provider", "from-guest")
	without.Who, without.Migration = still, nil
	if err := drawTCP(path, []tcpRun{moved("overlay", "to-guest"), moved("provider", "from-guest"), without}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for decoder := xml.NewDecoder(bytes.NewReader(text)); ; {
		if _, err := decoder.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if shaded := bytes.Count(text, []byte("blackout 50 ms")); shaded != 2 {
		t.Errorf("%d legends tell of a blackout, want 2", shaded)
	}
}
