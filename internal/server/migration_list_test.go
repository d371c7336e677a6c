package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// The id alone makes a table list the newest first.
func TestNewerIDsSortFirst(t *testing.T) {
	at := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	var ids []string
	for _, after := range []time.Duration{0, time.Millisecond, time.Second, time.Hour, 10000 * time.Hour, 200000 * time.Hour} {
		ids = append(ids, string(newMigrationID(at.Add(after))))
	}
	slices.Reverse(ids)
	if !slices.IsSorted(ids) {
		t.Errorf("the newest first: %v", ids)
	}
	if one, two := newMigrationID(at), newMigrationID(at); one == two {
		t.Errorf("two migrations of one instant have the id %s", one)
	}
}

func TestMigrationsAreListedNewestFirst(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	var want, ofWeb2 []string
	at := time.Now()
	for i := range 7 {
		m := migration.New(newMigrationID(at.Add(time.Duration(i)*time.Second)), fleet.VM{Name: fleet.VMName([]string{"web1", "web1", "web2"}[i%3])},
			"h2", nil, testPolicy(), "test", at)
		m.State = migration.Aborted
		if _, err := f.store.Commit(t.Context(), nil, f.server.tables.migrations.Put(string(m.ID), m)); err != nil {
			t.Fatal(err)
		}
		want = append([]string{string(m.ID)}, want...)
		if m.VM == "web2" {
			ofWeb2 = append([]string{string(m.ID)}, ofWeb2...)
		}
	}
	list := func(request *godwitv1.ListMigrationsRequest) (ids []string, pages int) {
		for {
			response, err := f.moves.List(t.Context(), request)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			for _, m := range response.GetMigrations() {
				ids = append(ids, m.GetId())
			}
			if response.GetNextToken() == "" {
				return ids, pages
			}
			request.Page.Token = response.GetNextToken()
		}
	}
	if ids, pages := list(&godwitv1.ListMigrationsRequest{Page: &godwitv1.PageRequest{Size: 3}}); !slices.Equal(ids, want) || pages != 3 {
		t.Errorf("%v in %d pages, want %v", ids, pages, want)
	}
	ids, pages := list(&godwitv1.ListMigrationsRequest{Vm: "web2", Page: &godwitv1.PageRequest{Size: 3}})
	if !slices.Equal(ids, ofWeb2) || pages != 1 {
		t.Errorf("of web2: %v in %d pages, want %v in 1", ids, pages, ofWeb2)
	}
	if ids, _ := list(&godwitv1.ListMigrationsRequest{Vm: "web9", Page: &godwitv1.PageRequest{Size: 2}}); len(ids) != 0 {
		t.Errorf("of a VM that never moved: %v", ids)
	}
	for name, call := range map[string]func() error{
		"get": func() error {
			_, err := f.moves.Get(t.Context(), &godwitv1.GetMigrationRequest{Id: "m-none"})
			return err
		},
		"cancel": func() error {
			_, err := f.moves.Cancel(t.Context(), &godwitv1.CancelMigrationRequest{Id: "m-none"})
			return err
		},
	} {
		if err := call(); fleet.CodeOf(err) != fleet.NotFound || fleet.HintOf(err) != "godwit migration list shows all" {
			t.Errorf("%s of an unknown migration: %v, hint %q", name, err, fleet.HintOf(err))
		}
	}
}

// The oldest first, by pages, with every filter.
func TestMigrationsAreListedOldestFirst(t *testing.T) {
	t.Parallel()
	a := &archive{testFleet: newFleet(t)}
	began := time.Now().Add(-24 * time.Hour)
	hour := func(n int) time.Time { return began.Add(time.Duration(n) * time.Hour) }
	var all []string
	for i := range 5 {
		all = append(all, a.put(hour(i), func(m *migration.Migration) {
			if i == 1 {
				m.VM, m.State = "web2", migration.Succeeded
			}
			if i == 2 { // still at it, since two hours after the beginning
				m.State, m.Ended = migration.Copying, time.Time{}
			}
		}))
	}
	for name, test := range map[string]struct {
		request *godwitv1.ListMigrationsRequest
		want    []string
	}{
		"all":             {&godwitv1.ListMigrationsRequest{}, all},
		"of a VM":         {&godwitv1.ListMigrationsRequest{Vm: "web2"}, all[1:2]},
		"in a state":      {&godwitv1.ListMigrationsRequest{State: "aborted"}, []string{all[0], all[3], all[4]}},
		"ended since":     {&godwitv1.ListMigrationsRequest{Since: timestamppb.New(hour(4))}, []string{all[2], all[4]}},
		"of no such VM":   {&godwitv1.ListMigrationsRequest{Vm: "web9"}, nil},
		"with everything": {&godwitv1.ListMigrationsRequest{Vm: "web1", State: "aborted", Since: timestamppb.New(hour(2))}, all[3:]},
	} {
		for _, oldestFirst := range []bool{true, false} {
			want := slices.Clone(test.want)
			if !oldestFirst {
				slices.Reverse(want)
			}
			request := proto.CloneOf(test.request)
			request.OldestFirst, request.Page = oldestFirst, &godwitv1.PageRequest{Size: 2}
			if got := a.pages(request); !slices.Equal(got, want) {
				t.Errorf("%s, the oldest first: %v: %v, want %v", name, oldestFirst, got, want)
			}
		}
	}
}

// A page ends before it is too large for a message, and the next goes on there.
func TestLargeMigrationsMakeShortPages(t *testing.T) {
	t.Parallel()
	a := &archive{testFleet: newFleet(t)}
	var all []string
	for i := range 8 {
		all = append(all, a.put(time.Now().Add(time.Duration(i)*time.Second), func(m *migration.Migration) {
			m.Cause = strings.Repeat("x", int(900*fleet.KiB))
		}))
	}
	first, err := a.moves.List(t.Context(), &godwitv1.ListMigrationsRequest{OldestFirst: true})
	if n := len(first.GetMigrations()); err != nil || n != 4 || first.GetNextToken() == "" {
		t.Fatalf("%d in the first page, %v", n, err)
	}
	if got := a.pages(&godwitv1.ListMigrationsRequest{OldestFirst: true, Page: &godwitv1.PageRequest{}}); !slices.Equal(got, all) {
		t.Errorf("%v, want %v", got, all)
	}
}

// pages lists all pages of a request.
func (a *archive) pages(request *godwitv1.ListMigrationsRequest) (ids []string) {
	a.t.Helper()
	for {
		response, err := a.moves.List(a.t.Context(), request)
		if err != nil {
			a.t.Fatal(err)
		}
		for _, m := range response.GetMigrations() {
			ids = append(ids, m.GetId())
		}
		if response.GetNextToken() == "" {
			return ids
		}
		request.Page.Token = response.GetNextToken()
	}
}
