package qmp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"godwit.dev/godwit/internal/qmp"
	"godwit.dev/godwit/internal/qmp/qmptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// connect gives a client of a new fake QEMU; both end with the test.
func connect(t *testing.T) (*qmptest.Server, *qmp.Client) {
	t.Helper()
	server := qmptest.New(t)
	client, err := qmp.Dial(t.Context(), server.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return server, client
}

// ended waits for the client's end and checks its reason.
func ended(t *testing.T, client *qmp.Client, want error) {
	t.Helper()
	select {
	case <-client.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection did not end")
	}
	if !errors.Is(client.Err(), want) {
		t.Errorf("ended with %v, want %v", client.Err(), want)
	}
}

func TestGreeting(t *testing.T) {
	_, client := connect(t)
	if got, want := client.Greeting(), (qmp.Greeting{Major: 10, Micro: 2, Package: "fake", OOB: true}); got != want {
		t.Errorf("greeting %+v, want %+v", got, want)
	}
}

func TestDialRefuses(t *testing.T) {
	for name, greeting := range map[string]string{
		"garbage":              "hello",
		"an event":             `{"event":"STOP","timestamp":{"seconds":1,"microseconds":2}}`,
		"a line without sense": `{}`,
	} {
		t.Run(name, func(t *testing.T) {
			server := qmptest.New(t)
			server.SetGreeting(greeting)
			if _, err := qmp.Dial(t.Context(), server.Path()); !errors.Is(err, qmp.ErrProtocol) {
				t.Errorf("error %v, want %v", err, qmp.ErrProtocol)
			}
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	server := qmptest.New(t)
	server.SetGreeting("")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := qmp.Dial(ctx, server.Path()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestRefusalCarriesClassAndText(t *testing.T) {
	server, client := connect(t)
	server.Refuse("cont", "Migration is not finalized yet")
	err := qmp.Cont(t.Context(), client)
	refusal, ok := errors.AsType[*qmp.Error](err)
	if !ok || *refusal != (qmp.Error{Command: "cont", Class: qmp.ClassGeneric, Desc: "Migration is not finalized yet"}) {
		t.Errorf("cont: %v", err)
	}
	if err := qmp.Stop(t.Context(), client); !qmp.IsClass(err, qmp.ClassCommandNotFound) {
		t.Errorf("stop: %v, want class %s", err, qmp.ClassCommandNotFound)
	}
}

// TestConcurrentCalls has many more callers than QEMU may have waiting.
func TestConcurrentCalls(t *testing.T) {
	server, client := connect(t)
	var mu sync.Mutex
	var inside, most int
	server.Handle("echo", func(args json.RawMessage) (any, error) {
		mu.Lock()
		inside++
		most = max(most, inside)
		mu.Unlock()
		defer func() { mu.Lock(); inside--; mu.Unlock() }()
		return args, nil
	})
	var callers sync.WaitGroup
	for i := range 100 {
		callers.Go(func() {
			var got struct{ N int }
			err := client.Execute(t.Context(), "echo", map[string]int{"n": i}, &got)
			if err != nil || got.N != i {
				t.Errorf("caller %d: got %d, %v", i, got.N, err)
			}
		})
	}
	callers.Wait()
	if most != 1 {
		t.Errorf("%d in-band commands at once", most)
	}
}

// TestOutOfBandOvertakes holds the main loop with as many commands as the
// client sends, then executes one out of band.
func TestOutOfBandOvertakes(t *testing.T) {
	server, client := connect(t)
	held, release := server.Hold("stop")
	server.Reply("migrate-pause", struct{}{})
	var stopped sync.WaitGroup
	for range 20 {
		stopped.Go(func() {
			if err := qmp.Stop(t.Context(), client); err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
	<-held
	if err := qmp.MigratePause(t.Context(), client); err != nil {
		t.Errorf("migrate-pause: %v", err)
	}
	calls := server.Calls()
	if last := calls[len(calls)-1]; last.Command != "migrate-pause" || !last.OOB {
		t.Errorf("last call %+v, want migrate-pause out of band", last)
	}
	release()
	stopped.Wait()
}

// TestBegunInOrder begins commands while QEMU is at the first one.
func TestBegunInOrder(t *testing.T) {
	server, client := connect(t)
	held, release := server.Hold("stop")
	server.Reply("query-status", qmp.QueryStatusResult{Status: qmp.RunStatePaused})
	var waits []qmp.Wait
	for _, command := range []string{"stop", "query-status", "block-job-cancel"} {
		wait, err := client.Begin(t.Context(), command, nil)
		if err != nil {
			t.Fatal(err)
		}
		waits = append(waits, wait)
	}
	<-held
	release()
	var status qmp.QueryStatusResult
	if err := waits[1](t.Context(), &status); err != nil || status.Status != qmp.RunStatePaused {
		t.Errorf("query-status: %+v, %v", status, err)
	}
	if err := waits[0](t.Context(), nil); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := waits[2](t.Context(), nil); !qmp.IsClass(err, qmp.ClassCommandNotFound) {
		t.Errorf("block-job-cancel: %v, want class %s", err, qmp.ClassCommandNotFound)
	}
	var order []string
	for _, call := range server.Calls() {
		order = append(order, call.Command)
	}
	if got := strings.Join(order, " "); got != "stop query-status block-job-cancel" {
		t.Errorf("executed: %s", got)
	}
}

func TestOutOfBandFallsBack(t *testing.T) {
	server := qmptest.New(t)
	server.SetGreeting(`{"QMP":{"version":{"qemu":{"micro":0,"minor":2,"major":7}},"capabilities":[]}}`)
	client, err := qmp.Dial(t.Context(), server.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server.Reply("migrate-pause", struct{}{})
	if err := qmp.MigratePause(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if calls := server.Calls(); len(calls) != 1 || calls[0].OOB {
		t.Errorf("calls %+v, want one in band", calls)
	}
}

// TestCancelledCall checks that a call that was given up keeps its place and
// that its late reply disturbs nobody.
func TestCancelledCall(t *testing.T) {
	server, client := connect(t)
	held, release := server.Hold("stop")
	server.Reply("query-status", qmp.QueryStatusResult{Running: true, Status: qmp.RunStateRunning})
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- qmp.Stop(ctx, client) }()
	<-held
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("stop: %v, want %v", err, context.Canceled)
	}
	release()
	status, err := qmp.QueryStatus(t.Context(), client)
	if err != nil || status.Status != qmp.RunStateRunning {
		t.Errorf("query-status: %+v, %v", status, err)
	}
}

func TestPendingCallsFailWhenQEMUGoes(t *testing.T) {
	server, client := connect(t)
	held, release := server.Hold("stop")
	defer release()
	var callers sync.WaitGroup
	for range 20 { // more than may be in flight
		callers.Go(func() {
			if err := qmp.Stop(t.Context(), client); !errors.Is(err, qmp.ErrGone) {
				t.Errorf("stop: %v, want %v", err, qmp.ErrGone)
			}
		})
	}
	<-held
	server.Disconnect()
	callers.Wait()
	ended(t, client, qmp.ErrGone)
	if err := qmp.Cont(t.Context(), client); !errors.Is(err, qmp.ErrGone) {
		t.Errorf("cont after the end: %v, want %v", err, qmp.ErrGone)
	}
}

func TestClose(t *testing.T) {
	server, client := connect(t)
	held, release := server.Hold("stop")
	defer release()
	result := make(chan error, 1)
	go func() { result <- qmp.Stop(t.Context(), client) }()
	<-held
	client.Close()
	client.Close()
	if err := <-result; !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("stop: %v, want %v", err, qmp.ErrClosed)
	}
	ended(t, client, qmp.ErrClosed)
}

func TestBrokenProtocol(t *testing.T) {
	for name, text := range map[string]string{
		"garbage":                 "}{\n",
		"neither reply nor event": "{}\n",
		"a reply to nothing":      `{"return":{},"id":` + strconv.Itoa(1<<40) + "}\n",
		"an error without id":     `{"error":{"class":"GenericError","desc":"JSON parse error"}}` + "\n",
		"a line too long":         string(bytes.Repeat([]byte{'x'}, 9<<20)),
		"a reply of another type": `{"return":{},"id":"one"}` + "\n",
		"an event of no name":     `{"event":7}` + "\n",
		"depth without end":       string(bytes.Repeat([]byte{'['}, 1<<20)) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			server, client := connect(t)
			server.WriteRaw([]byte(text))
			ended(t, client, qmp.ErrProtocol)
		})
	}
}

// A second greeting undoes what was negotiated, so another connection is made; in
// the middle of one there is none to make.
func TestGreetedTwice(t *testing.T) {
	server := qmptest.New(t)
	server.GreetTwice()
	server.Reply("query-status", map[string]any{"running": true, "status": "running"})
	client, err := qmp.Dial(t.Context(), server.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Execute(t.Context(), "query-status", nil, nil); err != nil || !client.Greeting().OOB {
		t.Errorf("after the second connection: %v, greeting %+v", err, client.Greeting())
	}
	server.WriteRaw([]byte(`{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": []}}` + "\n"))
	ended(t, client, qmp.ErrProtocol)
}

// A QEMU that dies in the middle of a line has gone, and broke no rule.
func TestTruncatedLine(t *testing.T) {
	for _, text := range []string{`{"event": "ST`, `{"return": {}, "id": 1`, "{", `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 1}}`} {
		server, client := connect(t)
		events := client.Subscribe(1)
		server.WriteRaw([]byte(text))
		server.Disconnect()
		ended(t, client, qmp.ErrGone)
		if event, open := <-events.Events(); open {
			t.Errorf("%q was taken for %v", text, event)
		}
	}
}
