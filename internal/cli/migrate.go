package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

const migrateHelp = `Migrate moves a running VM to another host while it runs: to the one that --to
names, or else to the one that fits best. If no host fits, it says for each why
not, and nothing has changed.

Without --watch or --wait it prints the migration's id and ends; the migration
goes on by itself. With --watch it shows the progress and then what was
measured; Ctrl-C ends the showing, never the migration. With --wait it is silent
until the end. Exit codes 6 and 7 tell that the migration ended badly, see
godwit help exit-codes.`

type migrateFlags struct {
	target, reason         string
	watch, wait            bool
	bandwidth              fleet.Bytes
	blackoutMax, copyLimit time.Duration
}

func newMigrateCommand(app *App) *cobra.Command {
	var chosen migrateFlags
	cmd := &cobra.Command{
		Use:   "migrate VM",
		Short: "Move a running VM to another host",
		Long:  migrateHelp,
		Example: `  godwit migrate web1
  godwit migrate web1 --to host-b --watch
  godwit migrate web1 --bandwidth 100MiB --blackout-max 300ms --timeout 10m --wait
  godwit migrate web1 --json | jq -r .id`,
		Args:              exactly("VM"),
		ValidArgsFunction: app.completeFirst(vmNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if chosen.watch && chosen.wait {
				return misused(cmd, "--watch and --wait exclude each other")
			}
			return app.call(cmd.Context(), 0, func(ctx context.Context, c *client.Client) error {
				return app.migrate(ctx, c, args[0], chosen)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&chosen.target, "to", "", "move it to this `host`")
	flags.StringVar(&chosen.reason, "reason", "", "`why`, for the record")
	flags.BoolVar(&chosen.watch, "watch", false, "show the progress until the end")
	flags.BoolVar(&chosen.wait, "wait", false, "wait silently for the end")
	flags.TextVar(&chosen.bandwidth, "bandwidth", fleet.Bytes(0), "most `bytes` to send in a second, such as 100MiB; 0B means no limit")
	flags.DurationVar(&chosen.blackoutMax, "blackout-max", 0, "longest expected `pause` of the VM; 0s means 300ms")
	flags.DurationVar(&chosen.copyLimit, "timeout", 0, "longest `time` to copy; 0s goes by the VM's memory")
	app.completeFlag(cmd, "to", hostNames)
	return cmd
}

func (a *App) migrate(ctx context.Context, c *client.Client, vm string, chosen migrateFlags) error {
	request := &godwitv1.CreateMigrationRequest{
		Vm: vm, Target: chosen.target, Reason: chosen.reason,
		Policy: &godwitv1.MigrationPolicy{
			CopyLimitMs:   chosen.copyLimit.Milliseconds(),
			BandwidthMax:  uint64(chosen.bandwidth),
			BlackoutMaxMs: chosen.blackoutMax.Milliseconds(),
		},
	}
	limited, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	response, err := c.Migration.Create(limited, request)
	if errors.Is(err, context.Canceled) {
		fmt.Fprintf(a.Err, "interrupted before the server answered; `godwit migration list --vm %s` tells whether it began\n", vm)
	}
	if err != nil {
		return named("migrate", "vm "+vm, err)
	}
	created := response.GetMigration()
	switch {
	case chosen.watch:
		return a.watchToEnd(ctx, c, created.GetId(), a.newView(), true)
	case chosen.wait:
		return a.watchToEnd(ctx, c, created.GetId(), &endView{app: a}, true)
	}
	if err := a.printOne(created, migrationLine(created)); err != nil || a.json {
		return err
	}
	fmt.Fprintf(a.Err, "follow it with `godwit migration watch %[1]s`, cancel it with `godwit migration cancel %[1]s`\n", created.GetId())
	return nil
}

// migrationLine tells in one line what a migration is doing.
func migrationLine(m *godwitv1.Migration) func(io.Writer) {
	return func(w io.Writer) {
		fmt.Fprintf(w, "migration %s of vm %s from %s to %s: %s", m.GetId(), m.GetVm(), m.GetSource(), m.GetTarget(), m.GetState())
		if m.GetCause() != "" {
			fmt.Fprintf(w, ": %s", m.GetCause())
		}
		fmt.Fprintln(w)
	}
}
