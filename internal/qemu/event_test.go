package qemu

import (
	"slices"
	"testing"
)

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
