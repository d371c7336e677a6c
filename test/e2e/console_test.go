package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"sync"
	"testing"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab/fleetlab"
	"godwit.dev/godwit/internal/lab/witness"
)

// testConsole keeps a console open while its VM moves there and back. The guest says
// a line a second; none is torn, missing or there twice.
func testConsole(t *testing.T, f *fleetlab.Fleet) {
	g := boot(t, f, fleetlab.GuestConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stream, err := f.API.VM.Console(ctx, &godwitv1.ConsoleRequest{Name: g.Name, HistoryBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	said, saying := io.Pipe()
	var mu sync.Mutex
	var hosts []string
	ended := ""
	go func() {
		defer saying.Close()
		for stream.Receive() {
			message := stream.Msg()
			mu.Lock()
			if message.GetHost() != "" {
				hosts = append(hosts, message.GetHost())
			}
			ended = message.GetEnded()
			mu.Unlock()
			_, _ = saying.Write(message.GetOutput()) // the reader may have left
		}
		_ = saying.CloseWithError(stream.Err())
	}()
	lines := bufio.NewReader(said)
	var last witness.Report
	for _, target := range []string{"h2", "h1"} {
		migrate(t, f, g, target, "succeeded")
		asked := last.Clock
		for last.Clock < asked+3*int64(time.Second) {
			next := nextReport(t, lines)
			if next.Clock <= last.Clock || last.Clock > 0 && next.Clock > last.Clock+3*int64(time.Second) {
				t.Errorf("after the report of %v comes that of %v", time.Duration(last.Clock), time.Duration(next.Clock))
			}
			last = next
		}
	}
	if _, err := f.API.VM.Stop(ctx, &godwitv1.StopVMRequest{Name: g.Name}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(hosts) != 3 || hosts[1] != "h2" || ended == "" {
		t.Errorf("it came from %v, and ended with %q", hosts, ended)
	}
}

// nextReport gives the guest's next report on its console, beside which the kernel
// may say something.
func nextReport(t *testing.T, lines *bufio.Reader) (report witness.Report) {
	t.Helper()
	for report.Kind == "" {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(line, []byte("{")) {
			continue
		}
		if err := json.Unmarshal(line, &report); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return report
}
