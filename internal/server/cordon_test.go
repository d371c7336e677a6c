package server

import (
	"log/slog"
	"strings"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// A cordon in the moment between the choice of a target and its record wins.
func TestCordonWhileChoosing(t *testing.T) {
	f := newFleet(t)
	h1 := f.join("h1")
	f.join("h2")
	f.running(h1, "web1")
	cordoned := 0
	cordon := func(fleet.HostName) bool { // asked after the hosts were read
		if cordoned++; cordoned == 1 {
			if _, err := f.hosts.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: "h2", Cordoned: true}); err != nil {
				t.Error(err)
			}
		}
		return true
	}
	r := newReconciler(f.server.tables, f.server.hub, f.server.addresses, cordon, f.server.foreseer, slog.New(slog.DiscardHandler))
	r.CarryOn(t.Context()) // or its timers would outlive the test
	m, err := r.create(t.Context(), migrationRequest{
		vm: "web1", policy: func(memory fleet.Bytes) (migration.Policy, error) { return migration.DefaultPolicy(memory), nil },
	})
	if fleet.CodeOf(err) != fleet.NoFit || !strings.Contains(describe(err), "it is cordoned") {
		t.Errorf("migrated to %q: %s", m.Value.Target, describe(err))
	}
	if vm := f.vm("web1"); vm.GetMigration() != "" {
		t.Errorf("the VM is locked by %s", vm.GetMigration())
	}
	if cpus, _ := f.reserved("h2"); cpus != 0 {
		t.Errorf("%d CPUs are reserved on h2", cpus)
	}

	// A VM's start decides on the same.
	on, err := f.server.tables.grounds(t.Context(), fleet.VMSpec{}, f.server.hub.connected)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.hosts.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: "h1", Cordoned: true}); err != nil {
		t.Fatal(err)
	}
	tables := f.server.tables
	_, err = tables.store.Commit(t.Context(), on.stand(tables, "h1"), tables.counters.Put("test", 1))
	if fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("what was decided before the cordon stands: %v", err)
	}
}

// A cordon while a host's record is being changed stays, and so does the change.
func TestCordonWhileChangingTheHost(t *testing.T) {
	f := newFleet(t)
	f.join("h1")
	tables, edits := f.server.tables, 0
	change := func(held ...store.Condition) error {
		return tables.changeHost(t.Context(), "test", "h1", func(host *fleet.Host) bool {
			if edits++; edits == 1 {
				if _, err := f.hosts.Cordon(t.Context(), &godwitv1.CordonHostRequest{Name: "h1", Cordoned: true}); err != nil {
					t.Error(err)
				}
			}
			changed := host.CPUs != 99
			host.CPUs = 99
			return changed
		}, held...)
	}
	if err := change(); err != nil || edits != 2 {
		t.Errorf("after %d tries: %v", edits, err)
	}
	after, err := tables.hosts.Get(t.Context(), "h1")
	if err != nil || !after.Value.Cordoned || after.Value.CPUs != 99 {
		t.Errorf("the record is %+v, %v", after.Value, err)
	}
	if err := change(); err != nil {
		t.Error(err)
	}
	if again, err := tables.hosts.Get(t.Context(), "h1"); err != nil || again.Version != after.Version {
		t.Errorf("a change of nothing is written: %v, %v", again, err)
	}

	err = tables.changeHost(t.Context(), "test", "h1", func(host *fleet.Host) bool {
		host.CPUs = 1
		return true
	}, tables.hosts.Present("h2"))
	if fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("without what must hold: %v", err)
	}
	if again, err := tables.hosts.Get(t.Context(), "h1"); err != nil || again.Version != after.Version {
		t.Errorf("it is changed without what must hold: %v, %v", again, err)
	}
}
