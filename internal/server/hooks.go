package server

import (
	"context"
	"log/slog"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/reconcile"
	"godwit.dev/godwit/internal/store"
)

// reportHandler takes what a host reports. The calls for one host come one
// after the other, in the order in which it sent them. An error means that the
// host must not say that; whatever else can't be taken the handler deals with.
type reportHandler func(ctx context.Context, host fleet.HostName, report *godwitv1.Report) error

// migrationHooks is what the rest of the server asks of the migrations. None of
// them may block longer than the store does, service, pass and run aside.
type migrationHooks struct {
	// service is the API.
	service godwitv1connect.MigrationServiceHandler
	// commit serves a target's line to the commit; host is the caller, and stop
	// unblocks the stream's Receive.
	commit func(ctx context.Context, host fleet.HostName, line reconcile.CommitStream, stop func()) error
	// report takes reports whose subject is a migration.
	report reportHandler
	// pass lets a request for a VM through the lock of its migration. It may wait
	// for the migration's end.
	pass func(ctx context.Context, op string, request migration.Request, vm fleet.VM) (unlocked int64, err error)
	// hostLost tells every migration from or to a host that it is off for good, and
	// gives those that were under way.
	hostLost func(ctx context.Context, host fleet.HostName) ([]store.Entry[migration.Migration], error)
	// connected follows a host's new session, by a process of its agent, and
	// disconnected the end of one.
	connected    func(host fleet.HostName, process string)
	disconnected func(host fleet.HostName, cause error)
	// run carries migrations on until ctx ends.
	run func(ctx context.Context) error
	// follow takes up what other servers change, until ctx ends.
	follow func(ctx context.Context)
}

// reconciler adds to what carries migrations on what the API asks of it.
type reconciler struct {
	*reconcile.Reconciler
	tables tables
}

func newReconciler(t tables, hosts reconcile.Commander, addresses reconcile.AddressBook, up func(fleet.HostName) bool, log *slog.Logger) *reconciler {
	return &reconciler{tables: t, Reconciler: reconcile.New(reconcile.Config{
		Tables: reconcile.Tables{
			Store: t.store, VMs: t.vms, Hosts: t.hosts, Ledgers: t.ledgers, Networks: t.networks, Migrations: t.migrations,
		},
		Hosts: hosts, Addresses: addresses, GoneAfter: goneAfter, Up: up, Log: log,
	})}
}

// migrationsOf connects the reconciler to the rest of the server.
func migrationsOf(r *reconciler, mirror *mirror, mayBeUp func(host fleet.HostName, op, subject string) error) migrationHooks {
	return migrationHooks{
		service:      &migrationService{tables: r.tables, runs: r, mirror: mirror, mayBeUp: mayBeUp},
		commit:       r.ServeCommit,
		report:       r.Report,
		pass:         r.pass,
		hostLost:     r.hostLost,
		connected:    r.SessionOpened,
		disconnected: r.SessionEnded,
		run:          r.Run,
		follow:       r.Follow,
	}
}
