package server

import (
	"slices"
	"testing"
	"time"

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
