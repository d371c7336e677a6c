package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func TestServersInTurn(t *testing.T) {
	dialled := 0
	s := newServers([]Server{{URL: "a"}, {URL: "b"}}, func(url string) (*client.Client, error) {
		if url == "bad" {
			return nil, errors.New("no such server")
		}
		dialled++
		return nil, nil
	})
	a := &Agent{servers: s, log: slog.New(slog.DiscardHandler)}
	for _, step := range []struct {
		cause error  // why there is no session any more
		then  string // the session's server, and those that a commit is asked of after it
	}{
		{errors.New("it broke"), "b a"},
		{errors.New("it broke"), "a b"},
		{&ledElsewhere{"b"}, "b a"},
		{&ledElsewhere{"c"}, "c a b"},
		{&ledElsewhere{"c"}, "c a b"},
		{&ledElsewhere{"bad"}, "a b c"}, // as if it had broken
	} {
		a.turn(step.cause)
		got := s.current().URL
		for turn := 1; turn < s.count(); turn++ {
			got += " " + s.inTurn(turn).URL
		}
		if got != step.then {
			t.Errorf("after %v: %s, want %s", step.cause, got, step.then)
		}
	}
	if dialled != 1 {
		t.Errorf("%d clients were made", dialled)
	}
	for i := range 2 * maxServers {
		a.turn(&ledElsewhere{fmt.Sprint("x", i)})
	}
	if s.count() != maxServers {
		t.Errorf("it knows %d servers", s.count())
	}
	// The newest are known, and those that were given.
	newest := fmt.Sprint("x", 2*maxServers-1)
	if got := s.current().URL; got != newest {
		t.Errorf("after many leaders the session is with %s, want %s", got, newest)
	}
	for _, want := range []string{"a", "b"} {
		if a.turn(errors.New("it broke")); s.current().URL != want {
			t.Errorf("the next one is %s, want %s", s.current().URL, want)
		}
	}
}

// What the agent was told of the store outlives it, also when the store that
// was accepted since has an older revision.
func TestMarkIsKept(t *testing.T) {
	dir := t.TempDir()
	if mark, err := loadMark(dir); mark != nil || err != nil {
		t.Errorf("at first: %v, %v", mark, err)
	}
	a := &Agent{config: Config{Dir: dir}, log: slog.New(slog.DiscardHandler), marked: make(chan struct{}, 1)}
	ended, end := context.WithCancel(t.Context())
	end()
	for _, mark := range []*godwitv1.StoreMark{
		{Cluster: 1<<63 + 1, Revision: 9}, {Cluster: 1<<63 + 1, Revision: 10}, {Cluster: 2, Generation: 1, Revision: 3},
	} {
		a.noteMark(mark)
		a.noteMark(nil) // of an older server
		a.keepMarks(ended)
		kept, err := loadMark(dir)
		if err != nil || !proto.Equal(kept, mark) || !proto.Equal(a.mark.Load(), mark) {
			t.Errorf("kept %v, %v, want %v", kept, err, mark)
		}
	}
}
