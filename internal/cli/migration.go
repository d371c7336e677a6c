package cli

import (
	"context"
	"io"
	"math"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func newMigrationCommand(app *App) *cobra.Command {
	return group("migration", "Look at migrations, follow and cancel them",
		`A migration is one move of one VM. Its record keeps what was decided, what was
measured and how it ended. godwit migrate begins one.`,
		"  godwit migration list --vm web1",
		newMigrationList(app), newMigrationShow(app), newMigrationExplain(app), newMigrationWatch(app),
		newMigrationCancel(app), newMigrationReturn(app), newMigrationExport(app))
}

func newMigrationList(app *App) *cobra.Command {
	var vm string
	most := 50
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List migrations, the newest first",
		Long:    "List shows migrations with state, total time and blackout, the newest first.",
		Example: `  godwit migration list
  godwit migration list --vm web1 --most 0
  godwit migration list --json | jq '.migrations[] | select(.state == "aborted") | {vm, cause}'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				var migrations []*godwitv1.Migration
				for migration, err := range c.Migrations(ctx, vm) {
					if err != nil {
						return named("list", "migrations", err)
					}
					migrations = append(migrations, migration)
					if len(migrations) == most {
						break
					}
				}
				if len(migrations) == 0 && vm != "" { // is there a VM of that name at all?
					if _, err := c.VM.Get(ctx, &godwitv1.GetVMRequest{Name: vm}); err != nil {
						return named("list", "migrations", err)
					}
				}
				return printList(app, "migrations", migrations, app.migrationTable)
			})
		},
	}
	cmd.Flags().StringVar(&vm, "vm", "", "only migrations of this `vm`")
	intFlag(cmd, &most, "most", 0, math.MaxInt32, "how many migrations to list at most; 0 lists all")
	addTimeout(cmd, &limit)
	app.completeFlag(cmd, "vm", vmNames)
	return cmd
}

func newMigrationShow(app *App) *cobra.Command {
	return app.callCommand("show MIGRATION", "Show one migration and what was measured",
		`Show prints what a migration was to do, how it ended, the blackout by phases,
the passes over the memory, the hosts that were refused, and the timeline.`,
		"  godwit migration show 7f3k9\n  godwit migration show 7f3k9 --json | jq .outcome", migrationIDs,
		func(ctx context.Context, c *client.Client, id string) error {
			response, err := c.Migration.Get(ctx, &godwitv1.GetMigrationRequest{Id: id})
			if err != nil {
				return named("show", "migration "+id, err)
			}
			migration := response.GetMigration()
			return app.printOne(migration, func(w io.Writer) { app.showMigration(w, migration) })
		})
}

func newMigrationWatch(app *App) *cobra.Command {
	return &cobra.Command{
		Use:   "watch MIGRATION",
		Short: "Follow a migration until its end",
		Long: `Watch shows the progress of a migration and then what was measured. On a
terminal it draws in place; elsewhere it prints a line for each change, at most
one a second; with --json one object a line. Ctrl-C ends the showing, never the
migration. It ends with code 6 or 7 if the migration does not succeed.`,
		Example:           "  godwit migration watch 7f3k9",
		Args:              exactly("MIGRATION"),
		ValidArgsFunction: app.completeFirst(migrationIDs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return app.call(cmd.Context(), 0, func(ctx context.Context, c *client.Client) error {
				return app.watchToEnd(ctx, c, args[0], app.newView(), false)
			})
		},
	}
}

func newMigrationCancel(app *App) *cobra.Command {
	var reason string
	var version int64
	cmd := app.callCommand("cancel MIGRATION", "Cancel a migration that has not committed",
		`Cancel ends a migration with the VM at its source, where it runs on. Once the
migration has committed the VM is at its target, and cancel is refused.`,
		"  godwit migration cancel 7f3k9 --reason 'wrong host'", migrationIDs,
		func(ctx context.Context, c *client.Client, id string) error {
			response, err := c.Migration.Cancel(ctx, &godwitv1.CancelMigrationRequest{Id: id, Reason: reason, Version: version})
			if err != nil {
				return named("cancel", "migration "+id, err)
			}
			return app.printOne(response.GetMigration(), migrationLine(response.GetMigration()))
		})
	cmd.Flags().StringVar(&reason, "reason", "", "`why`, for the record")
	versionFlag(cmd, &version)
	return cmd
}

const returnHelp = `Return gives a VM back to the source of a migration that has committed to a host
which never said that it runs it. The source still has all of the VM, and goes
on.

Make sure first that the host is off, and stays off until its agent can reach
the server again: if it runs the VM after all, there are two of it. A host that
is up, and fails to run the VM, counts as off once you have stopped its agent
and then ended the VM's QEMU there; start the agent again afterwards. Godwit
can't know, so it takes your word. While the host's agent has a session, return
is refused, and for half a minute after a server has begun to lead that has not
heard of the host.`

func newMigrationReturn(app *App) *cobra.Command {
	var host string
	var version int64
	cmd := app.callCommand("return MIGRATION", "Give a VM back to the source, when the target's host is off", returnHelp,
		"  godwit migration return 7f3k9 --host-is-off h2", migrationIDs,
		func(ctx context.Context, c *client.Client, id string) error {
			response, err := c.Migration.Return(ctx, &godwitv1.ReturnMigrationRequest{Id: id, HostIsOff: host, Version: version})
			if err != nil {
				return named("return", "migration "+id, err)
			}
			return app.printOne(response.GetMigration(), migrationLine(response.GetMigration()))
		})
	cmd.Flags().StringVar(&host, "host-is-off", "", "`host` of the target, which you have made sure is off (required)")
	versionFlag(cmd, &version)
	return cmd
}

func (a *App) migrationTable(migrations []*godwitv1.Migration) table {
	t := table{style: a.style(), states: 4}
	t.add("ID", "VM", "FROM", "TO", "STATE", "TOTAL", "BLACKOUT", "AGE")
	for _, m := range migrations {
		var total, blackout string
		if outcome := m.GetOutcome(); outcome.GetBlackoutMs() > 0 {
			total, blackout = millis(outcome.GetTotalMs()), millis(outcome.GetBlackoutMs())
		}
		t.add(m.GetId(), m.GetVm(), m.GetSource(), m.GetTarget(), m.GetState(), total, blackout, a.age(m.GetCreated()))
	}
	return t
}
