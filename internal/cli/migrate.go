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

// Bounds of what a migration may take. Those of times are the server's.
const (
	minBandwidth = fleet.MiB // a second; with less no copy ends
	maxBandwidth = fleet.TiB
	minLimit     = time.Millisecond
	maxLimit     = 720 * time.Hour
)

type migrateFlags struct {
	target, reason, request string
	watch, wait             bool
	version                 int64
	answer                  time.Duration

	bandwidthMax                    fleet.Bytes
	blackoutMax, copyMax, switchMax time.Duration
}

func newMigrateCommand(app *App) *cobra.Command {
	var chosen migrateFlags
	cmd := &cobra.Command{
		Use:   "migrate VM",
		Short: "Move a running VM to another host",
		Long:  migrateHelp,
		Example: `  godwit migrate web1
  godwit migrate web1 --to host-b --watch
  godwit migrate web1 --bandwidth-max 100MiB --blackout-max 200ms --copy-max 10m --wait
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
	bytesFlag(cmd, &chosen.bandwidthMax, "bandwidth-max", minBandwidth, maxBandwidth, "most bytes to send in a second, such as 100MiB (default: no limit)")
	durationFlag(cmd, &chosen.blackoutMax, "blackout-max", minLimit, maxLimit, "longest expected pause of the VM, such as 200ms (default: 300ms)")
	durationFlag(cmd, &chosen.copyMax, "copy-max", minLimit, maxLimit, "longest time to copy, such as 10m, before it is aborted (default: 150s for each GiB of memory, at least 5m)")
	durationFlag(cmd, &chosen.switchMax, "switch-max", minLimit, maxLimit, "longest time of the hand-over before it is aborted (default: 3s)")
	versionFlag(cmd, &chosen.version)
	requestFlag(cmd, &chosen.request)
	addTimeout(cmd, &chosen.answer)
	app.completeFlagFor(cmd, "to", targetsFor)
	return cmd
}

func (a *App) migrate(ctx context.Context, c *client.Client, vm string, chosen migrateFlags) error {
	request := &godwitv1.CreateMigrationRequest{
		Vm: vm, Target: chosen.target, Reason: chosen.reason, RequestId: chosen.request, Version: chosen.version,
		Policy: &godwitv1.MigrationPolicy{
			CopyLimitMs:   chosen.copyMax.Milliseconds(),
			SwitchLimitMs: chosen.switchMax.Milliseconds(),
			BandwidthMax:  uint64(chosen.bandwidthMax),
			BlackoutMaxMs: chosen.blackoutMax.Milliseconds(),
		},
	}
	limited, cancel := context.WithTimeout(ctx, chosen.answer)
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
