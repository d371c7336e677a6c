package qmp_test

import (
	"errors"
	"testing"
	"time"

	"godwit.dev/godwit/internal/qmp"
)

func TestEventsInOrderToEverySubscriber(t *testing.T) {
	server, client := connect(t)
	all := client.Subscribe(64)
	passes := client.Subscribe(64, qmp.EventMigrationPass)
	at := time.Unix(1_700_000_000, 123_456_000)
	server.EmitAt(at, qmp.EventStop, nil)
	for pass := range int64(20) {
		server.EmitAt(at.Add(time.Duration(pass)*time.Microsecond), qmp.EventMigrationPass, qmp.MigrationPassEvent{Pass: pass})
	}
	server.Reply("query-status", qmp.QueryStatusResult{})
	// What was written before a reply is in the channels when the call returns.
	if _, err := qmp.QueryStatus(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if len(all.Events()) != 21 || len(passes.Events()) != 20 {
		t.Fatalf("%d and %d events queued, want 21 and 20", len(all.Events()), len(passes.Events()))
	}
	if first := <-all.Events(); first.Name != qmp.EventStop || !first.Time.Equal(at) {
		t.Errorf("first event %s at %v, want %s at %v", first.Name, first.Time, qmp.EventStop, at)
	}
	for _, s := range []*qmp.Subscription{all, passes} {
		for want := range int64(20) {
			event := <-s.Events()
			var pass qmp.MigrationPassEvent
			if err := event.Decode(&pass); err != nil || pass.Pass != want {
				t.Fatalf("pass %d, %v; want %d", pass.Pass, err, want)
			}
			if offset := event.Time.Sub(at); offset != time.Duration(want)*time.Microsecond {
				t.Errorf("pass %d: time off by %v", want, offset)
			}
		}
	}
}

func TestEventWithoutTime(t *testing.T) {
	server, client := connect(t)
	events := client.Subscribe(1)
	server.WriteRaw([]byte(`{"event":"STOP","timestamp":{"seconds":-1,"microseconds":-1}}` + "\n"))
	if event := <-events.Events(); !event.Time.IsZero() {
		t.Errorf("time %v, want none", event.Time)
	}
}

// TestSlowSubscriber checks that it alone is closed, after what it was owed.
func TestSlowSubscriber(t *testing.T) {
	server, client := connect(t)
	slow, quick := client.Subscribe(2), client.Subscribe(8)
	for range 4 {
		server.Emit(qmp.EventStop, nil)
	}
	for range 4 {
		<-quick.Events()
	}
	got := 0
	for range slow.Events() {
		got++
	}
	if got != 2 || !errors.Is(slow.Err(), qmp.ErrSlow) {
		t.Errorf("%d events, then %v; want 2, then %v", got, slow.Err(), qmp.ErrSlow)
	}
	if quick.Err() != nil {
		t.Errorf("the other subscriber: %v", quick.Err())
	}
}

func TestSubscriptionsEnd(t *testing.T) {
	server, client := connect(t)
	own, theirs := client.Subscribe(1), client.Subscribe(1)
	own.Close()
	own.Close()
	if _, open := <-own.Events(); open || !errors.Is(own.Err(), qmp.ErrClosed) {
		t.Errorf("closed by its owner: open %v, %v", open, own.Err())
	}
	server.Disconnect()
	if _, open := <-theirs.Events(); open || !errors.Is(theirs.Err(), qmp.ErrGone) {
		t.Errorf("QEMU went away: open %v, %v", open, theirs.Err())
	}
	late := client.Subscribe(1)
	if _, open := <-late.Events(); open || !errors.Is(late.Err(), qmp.ErrGone) {
		t.Errorf("subscribed after the end: open %v, %v", open, late.Err())
	}
}
