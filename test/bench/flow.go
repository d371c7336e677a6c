package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"godwit.dev/godwit/internal/lab"
)

const (
	// iperf is Debian's, here and in the guest.
	iperf = "/usr/bin/iperf3"
	// flowBegins is how many bytes a client's devices carry when a flow has begun: more
	// than what iperf3 agrees on with its server.
	flowBegins = 64 << 10
	// flowLook is how often they are looked at until then.
	flowLook = 2 * time.Millisecond
	// knockEvery is how often a server is tried that is not there yet.
	knockEvery = 200 * time.Millisecond
)

// flowServer is what the guest runs.
var flowServer = [...]string{iperf, "--server"}

// flow is an iperf3 client, and its one connection that carries data.
type flow struct {
	begun  time.Time // when data began to flow
	output bytes.Buffer
	ended  chan error
}

// flowSpec says what flow to start.
type flowSpec struct {
	guest   netip.Addr
	length  time.Duration
	reverse bool // from the guest
	mbit    int  // a second, at most; no limit if 0
}

func (s flowSpec) args() []string {
	args := []string{"--client", s.guest.String(), "--json", "--interval", "0.1", "--time", strconv.Itoa(int(s.length.Seconds()))}
	if s.reverse {
		args = append(args, "--reverse")
	}
	if s.mbit > 0 {
		args = append(args, "--bitrate", strconv.Itoa(s.mbit)+"M")
	}
	return args
}

// errNotTaken: the server was not ready. It does not listen before it has begun, nor for a
// moment after each flow, when it even closes what has connected meanwhile; and just
// before, it takes the last flow to be still there.
var (
	errNotTaken = errors.New("the server did not take the flow")
	notTaken    = [...]string{"Connection refused", "Connection reset by peer", "try again later"}
)

// startFlow starts one and waits until data flows. It tries until the server takes it.
// The caller ends the flow.
func startFlow(ctx context.Context, place *lab.Namespace, spec flowSpec) (*flow, error) {
	for {
		f, err := tryFlow(ctx, place, spec)
		if !errors.Is(err, errNotTaken) {
			return f, err
		}
		select {
		case <-time.After(knockEvery):
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		}
	}
}

func tryFlow(ctx context.Context, place *lab.Namespace, spec flowSpec) (*flow, error) {
	before, err := carried(place)
	if err != nil {
		return nil, err
	}
	f := &flow{ended: make(chan error, 1)}
	cmd := place.Command(ctx, iperf, spec.args()...)
	cmd.Stdout, cmd.Stderr = &f.output, &f.output
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { f.ended <- cmd.Wait() }()
	for look := time.NewTicker(flowLook); ; {
		select {
		case failed := <-f.ended:
			look.Stop()
			return nil, whyEnded(failed, f.output.Bytes())
		case f.begun = <-look.C:
		}
		now, err := carried(place)
		if err != nil || now-before >= flowBegins {
			look.Stop()
			return f, err
		}
	}
}

// whyEnded tells why a client has ended before anything flowed.
func whyEnded(failed error, output []byte) error {
	result, err := parseFlow(output)
	if err != nil {
		return errors.Join(failed, err)
	}
	for _, why := range notTaken {
		if strings.HasSuffix(result.Error, why) {
			return fmt.Errorf("%w: %s", errNotTaken, result.Error)
		}
	}
	return fmt.Errorf("iperf3 ended at once: %s", result.Error)
}

// end waits for the end of the flow.
func (f *flow) end() (flowResult, error) {
	failed := <-f.ended
	result, err := parseFlow(f.output.Bytes())
	if err == nil && failed != nil && result.Error == "" {
		err = fmt.Errorf("iperf3: %w", failed)
	}
	return result, err
}

// shortFlow tells that the server is there, and shows the guest once what is to come.
func shortFlow(ctx context.Context, place *lab.Namespace, guest netip.Addr) error {
	f, err := startFlow(ctx, place, flowSpec{guest: guest, length: time.Second})
	if err != nil {
		return err
	}
	result, err := f.end()
	if err == nil && result.Error != "" {
		err = errors.New(result.Error)
	}
	return err
}

// flowResult is what iperf3 prints with --json, as far as it matters here.
type flowResult struct {
	Intervals []struct {
		Sum struct {
			Start   float64 `json:"start"`
			Seconds float64 `json:"seconds"`
			Bytes   uint64  `json:"bytes"`
		} `json:"sum"`
	} `json:"intervals"`
	End struct {
		Sent struct {
			Retransmits *uint64 `json:"retransmits"`
		} `json:"sum_sent"`
		Received struct {
			Bytes uint64 `json:"bytes"`
		} `json:"sum_received"`
	} `json:"end"`
	// Error says why the flow did not go to its end.
	Error string `json:"error"`
}

// parseFlow reads a result. One without an error has every figure.
func parseFlow(text []byte) (r flowResult, err error) {
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("iperf3 has printed %.200q: %w", text, err)
	}
	if r.Error == "" && (len(r.Intervals) == 0 || r.End.Sent.Retransmits == nil || r.End.Received.Bytes == 0) {
		return r, fmt.Errorf("iperf3's result lacks intervals, retransmits or what was received: %.200q", text)
	}
	return r, nil
}

// carried gives the bytes that the devices of a client have sent and received.
func carried(place *lab.Namespace) (sum uint64, err error) {
	var text []byte
	err = place.Do(func() error {
		text, err = os.ReadFile("/proc/thread-self/net/dev")
		return err
	})
	if err != nil {
		return 0, err
	}
	return sumDevices(string(text))
}

// sumDevices adds up what proc(5), net/dev, says of all devices but the loopback.
func sumDevices(text string) (sum uint64, err error) {
	const received, sent = 0, 8
	for line := range strings.Lines(text) {
		name, counts, found := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(counts)
		if !found || name == "lo" || len(fields) <= sent {
			continue
		}
		for _, field := range []string{fields[received], fields[sent]} {
			n, err := strconv.ParseUint(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("bytes of %s: %w", name, err)
			}
			sum += n
		}
	}
	return sum, nil
}
