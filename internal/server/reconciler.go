package server

import (
	"log/slog"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/reconcile"
)

// reconciler adds to what carries migrations on what the API asks of it.
type reconciler struct {
	*reconcile.Reconciler
	tables   tables
	foreseer *foreseer
}

func newReconciler(t tables, hosts reconcile.Commander, addresses reconcile.AddressBook, up func(fleet.HostName) bool, f *foreseer, log *slog.Logger) *reconciler {
	return &reconciler{tables: t, foreseer: f, Reconciler: reconcile.New(reconcile.Config{
		Tables: reconcile.Tables{
			Store: t.store, VMs: t.vms, Hosts: t.hosts, Ledgers: t.ledgers, Networks: t.networks, Migrations: t.migrations,
		},
		Hosts: hosts, Addresses: addresses, GoneAfter: goneAfter, Up: up, Measure: f.measure, Log: log,
	})}
}
