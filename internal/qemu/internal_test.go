package qemu

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/qmp"
	"godwit.dev/godwit/internal/qmp/schema"
)

func TestNeedsNameWhatIsMissing(t *testing.T) {
	old, err := schema.Parse([]byte(`[{"name":"migrate-incoming","meta-type":"command"}]`))
	if err != nil {
		t.Fatal(err)
	}
	err = checkNeeds("/usr/bin/qemu", "2.5.0", old)
	if fleet.CodeOf(err) != fleet.Unsupported || !strings.Contains(err.Error(), "migrate-continue") || !strings.Contains(fleet.HintOf(err), "2.11") {
		t.Errorf("error %v, hint %q", err, fleet.HintOf(err))
	}
}

func TestHasVirtualization(t *testing.T) {
	for text, want := range map[string]bool{
		"processor\t: 0\nflags\t\t: fpu vmx sse\n": true,
		"flags\t\t: fpu svm\n":                     true,
		"flags\t\t: fpu vmx_preemption svml\n":     false,
		"model name\t: vmx svm\nflags\t\t: fpu\n":  false,
		"": false,
	} {
		path := filepath.Join(t.TempDir(), "cpuinfo")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := hasVirtualization(path); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// TestSwitchoverIsNeverATrap: QEMU's threshold is bandwidth times limit, cut
// down to whole bytes, and must not become 0 unless it is left to QEMU.
func TestSwitchoverIsNeverATrap(t *testing.T) {
	for _, tt := range []struct {
		asked fleet.BytesPerSecond
		limit time.Duration
		want  int64
	}{
		{0, time.Millisecond, 0},
		{1, time.Millisecond, 1000},
		{1000, time.Millisecond, 1000},
		{1, 3 * time.Millisecond, 334},
		{1, 5 * time.Second, 1},
		{1 << 20, time.Millisecond, 1 << 20},
	} {
		got := switchover(Outgoing{SwitchoverBandwidth: tt.asked, DowntimeLimit: tt.limit})
		if got != tt.want {
			t.Errorf("%v in %v: %d, want %d", float64(tt.asked), tt.limit, got, tt.want)
		}
	}
}

func TestTranslate(t *testing.T) {
	at := time.Unix(1, 2000)
	for _, tt := range []struct {
		name, data string
		want       Event
		ok         bool
	}{
		{qmp.EventStop, "", Event{Kind: Stopped, At: at}, true},
		{qmp.EventResume, "", Event{Kind: Resumed, At: at}, true},
		{qmp.EventMigrationPass, `{"pass":3}`, Event{Kind: PassBegun, At: at, Pass: 3}, true},
		{qmp.EventMigration, `{"status":"device"}`, Event{Kind: MigrationChanged, At: at, Status: StatusDevice}, true},
		{qmp.EventShutdown, `{"guest":true,"reason":"guest-shutdown"}`, Event{Kind: Shutdown, At: at, Reason: "guest-shutdown"}, true},
		{qmp.EventBlockIOError, `{"reason":"No space left on device"}`, Event{Kind: DiskError, At: at, Reason: "No space left on device"}, true},
		{qmp.EventGuestPanicked, `{"action":"pause"}`, Event{Kind: GuestPanicked, At: at}, true},
		{"RTC_CHANGE", `{}`, Event{At: at}, false},
	} {
		event, ok := translate(qmp.Event{Name: tt.name, Time: at, Data: json.RawMessage(tt.data)})
		if event != tt.want || ok != tt.ok {
			t.Errorf("%s %s: %+v, %v; want %+v, %v", tt.name, tt.data, event, ok, tt.want, tt.ok)
		}
	}
	if _, ok := translate(qmp.Event{Name: qmp.EventMigration, Data: json.RawMessage(`{"status":7}`)}); ok {
		t.Error("a status that is no string was passed on")
	}
}

func TestLastWords(t *testing.T) {
	dir := t.TempDir()
	if got := lastWords(dir); got != "" {
		t.Errorf("without a log: %q", got)
	}
	text := strings.Repeat("an old line\n", 1000) + "one\ntwo\nthree\nfour\nfive\n"
	if err := os.WriteFile(filepath.Join(dir, logFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := lastWords(dir), "one; two; three; four; five"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// What QEMU 7.2 and 10.0 answer to gpa2hva, and what no answer is.
func TestParsePlace(t *testing.T) {
	for answer, want := range map[string]hostPlace{
		"Host virtual address for 0x100000 (pc.ram) is 0x7f2e6bf00000\r\n": {"pc.ram", 0x7f2e6bf00000},
		"Host virtual address for 0x0 (pc.ram) is 0x7f2e6be00000":          {"pc.ram", 0x7f2e6be00000},
		"No memory is mapped at address 0x40000000\r\n":                    {},
		"Memory at address 0xfee00000is not RAM\r\n":                       {},
		"unknown command: 'gpa2hva'\r\n":                                   {},
		"Host virtual address for 0x0 (pc.ram) is 0x17f2e6be000000000":     {},
		"": {},
	} {
		if got, known := parsePlace(answer); got != want || known != (want != hostPlace{}) {
			t.Errorf("%q: %v, %v", answer, got, known)
		}
	}
}
