package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"godwit.dev/godwit/internal/qmp"
	"godwit.dev/godwit/internal/qmp/qmptest"
)

// subscribed is an Instance of which only the monitor is there.
func subscribed(t *testing.T) (*qmptest.Server, *Subscription) {
	server := qmptest.New(t)
	client, err := qmp.Dial(t.Context(), server.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	s := (&Instance{monitor: client}).Subscribe()
	t.Cleanup(s.Close)
	return server, s
}

func eventLine(name, data string) string {
	return fmt.Sprintf(`{"event": %q, "data": %s, "timestamp": {"seconds": 1, "microseconds": 0}}`+"\n", name, data)
}

// An agent that was stopped for some seconds finds all passes of a held QEMU at
// once.
func TestBurstOfPasses(t *testing.T) {
	server, events := subscribed(t)
	const passes = 50_000
	var burst bytes.Buffer
	for pass := range passes {
		burst.WriteString(eventLine(qmp.EventMigrationPass, fmt.Sprintf(`{"pass": %d}`, pass+1)))
	}
	burst.WriteString(eventLine(qmp.EventStop, "{}"))
	server.WriteRaw(burst.Bytes())
	last := 0
	for event := range events.Events() {
		if event.Kind == Stopped {
			break
		}
		if event.Pass <= last {
			t.Fatalf("pass %d after pass %d", event.Pass, last)
		}
		last = event.Pass
	}
	if last != passes || events.Err() != nil {
		t.Errorf("the last was pass %d, %v; want %d", last, events.Err(), passes)
	}
}

func TestTooMuchLeftWaiting(t *testing.T) {
	server, events := subscribed(t)
	for range 3 * eventQueue {
		server.WriteRaw([]byte(eventLine(qmp.EventStop, "{}")))
	}
	events.done.Wait()
	for range events.Events() {
		t.Error("an event after the end")
	}
	if !errors.Is(events.Err(), qmp.ErrSlow) {
		t.Errorf("ended with %v", events.Err())
	}
}

func TestPassesInARowAreOne(t *testing.T) {
	var waiting []Event
	for _, event := range []Event{
		{Kind: PassBegun, Pass: 1}, {Kind: PassBegun, Pass: 2}, {Kind: Stopped},
		{Kind: PassBegun, Pass: 3}, {Kind: PassBegun, Pass: 4}, {Kind: MigrationChanged, Status: StatusCompleted},
	} {
		waiting = enqueue(waiting, event)
	}
	want := []Event{{Kind: PassBegun, Pass: 2}, {Kind: Stopped}, {Kind: PassBegun, Pass: 4}, {Kind: MigrationChanged, Status: StatusCompleted}}
	if !slices.Equal(waiting, want) {
		t.Errorf("waiting are %v, want %v", waiting, want)
	}
}
