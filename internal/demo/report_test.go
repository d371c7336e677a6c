package demo

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

func TestVerdict(t *testing.T) {
	good := Migration{State: succeeded, want: succeeded, Source: "h1", Target: "h2", Client: Client{UDPSent: 100}}
	with := func(change func(*Migration)) Migration {
		m := good
		change(&m)
		return m
	}
	for _, test := range []struct {
		name string
		one  Migration
		want []string
	}{
		{"all well", good, nil},
		{"cancelled as asked", with(func(m *Migration) { m.State, m.want, m.cause = aborted, aborted, "cancelled" }), nil},
		{"aborted", with(func(m *Migration) { m.State, m.cause = aborted, "no route" }), []string{"should have succeeded, but ended aborted: no route"}},
		{"not cancelled", with(func(m *Migration) { m.want = aborted }), []string{"should have aborted, but ended succeeded"}},
		{"nobody knows", with(func(m *Migration) { m.State = "needs-operator" }), []string{"should have succeeded, but ended needs-operator"}},
		{"lost", with(func(m *Migration) { m.Client.UDPLost = 3 }), []string{"the client lost 3 of 100 UDP packets"}},
		{"twice", with(func(m *Migration) { m.Client.UDPDuplicated = 1 }), []string{"the client got 1 UDP packets twice"}},
		{"lost when cancelled", with(func(m *Migration) {
			m.State, m.want, m.Client.UDPLost, m.Client.TCPBroken = aborted, aborted, 1, true
		}), []string{"the client lost 1 of 100 UDP packets", "the client's TCP stream broke"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Report{Migrations: []Migration{good, test.one}}.verdict()
			var problems []string
			if e, ok := errors.AsType[*fleet.Error](err); ok {
				for _, field := range e.Fields {
					problems = append(problems, field.Problem)
					if field.Path != "migration 2, h1 → h2" {
						t.Errorf("path %q", field.Path)
					}
				}
			}
			if !slices.Equal(problems, test.want) || (err != nil) != (test.want != nil) {
				t.Errorf("got %v, %q, want %q", err, problems, test.want)
			}
		})
	}
}

func TestOnlyRootMayBegin(t *testing.T) {
	if err := check(1000); fleet.CodeOf(err) != fleet.Denied || !strings.Contains(fleet.HintOf(err), "root") {
		t.Errorf("got %v, hint %q", err, fleet.HintOf(err))
	}
}
