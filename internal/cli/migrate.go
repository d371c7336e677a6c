package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/predict"
)

const migrateHelp = `Migrate moves a running VM to another host while it runs: to the one that --to
names, or else to the one that fits best. If no host fits, it says for each why
not, and nothing has changed.

Before the copy the guest is measured for two seconds, while the target is being
prepared, and it is foretold whether the migration ends within its limits. One
that is predicted to fail is cancelled, before or in the copy: its target's
instance is stopped, and the VM never notices. --dry-run shows the forecast and
does nothing; --on-predicted-failure go-on lets it be tried, and --force says in
the record that somebody insisted.

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
	dryRun, force           bool
	onFailure, preset       string
	throttleMax             *int32 // nil if it was not given
	version                 int64
	answer                  time.Duration

	bandwidthMax                    fleet.Bytes
	blackoutMax, copyMax, switchMax time.Duration
}

func newMigrateCommand(app *App) *cobra.Command {
	var chosen migrateFlags
	throttle := 0
	cmd := &cobra.Command{
		Use:   "migrate VM",
		Short: "Move a running VM to another host",
		Long:  migrateHelp + "\n\nThe policies that --policy names, which other flags change:\n" + presetHelp(),
		Example: `  godwit migrate web1
  godwit migrate web1 --to host-b --watch
  godwit migrate web1 --bandwidth-max 100MiB --blackout-max 200ms --copy-max 10m --wait
  godwit migrate web1 --dry-run
  godwit migrate web1 --json | jq -r .id`,
		Args:              exactly("VM"),
		ValidArgsFunction: app.completeFirst(vmNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := chosen.check(cmd); err != nil {
				return err
			}
			if cmd.Flags().Changed("throttle-max") {
				chosen.throttleMax = new(int32(throttle))
			}
			return app.call(cmd.Context(), 0, func(ctx context.Context, c *client.Client) error {
				if chosen.dryRun {
					return app.dryRun(ctx, c, args[0], chosen)
				}
				return app.migrate(ctx, c, args[0], chosen)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&chosen.target, "to", "", "move it to this `host`")
	flags.StringVar(&chosen.preset, "policy", "", "`name` of limits for who does not want to choose (default: balanced)")
	flags.StringVar(&chosen.reason, "reason", "", "`why`, for the record")
	flags.BoolVar(&chosen.watch, "watch", false, "show the progress until the end")
	flags.BoolVar(&chosen.wait, "wait", false, "wait silently for the end")
	bytesFlag(cmd, &chosen.bandwidthMax, "bandwidth-max", minBandwidth, maxBandwidth, "most bytes to send in a second, such as 100MiB (default: no limit)")
	durationFlag(cmd, &chosen.blackoutMax, "blackout-max", minLimit, maxLimit, "longest expected pause of the VM, such as 200ms (default: 300ms)")
	durationFlag(cmd, &chosen.copyMax, "copy-max", minLimit, maxLimit, "longest time to copy, such as 10m, before it is aborted (default: 150s for each GiB of memory, at least 5m)")
	durationFlag(cmd, &chosen.switchMax, "switch-max", minLimit, maxLimit, "longest time of the hand-over before it is aborted (default: 3s)")
	intFlag(cmd, &throttle, "throttle-max", 0, predict.MaxThrottle, "`percent` of its time that may be taken from the guest, if it does not end otherwise (default: none)")
	flags.BoolVar(&chosen.dryRun, "dry-run", false, "show the target and the forecast, and do nothing")
	flags.BoolVar(&chosen.force, "force", false, "go on whatever is predicted, and record it")
	flags.StringVar(&chosen.onFailure, "on-predicted-failure", "", "what follows: cancel or go-on (default: `cancel`)")
	versionFlag(cmd, &chosen.version)
	requestFlag(cmd, &chosen.request)
	addTimeout(cmd, &chosen.answer)
	app.completeFlagFor(cmd, "to", targetsFor)
	_ = cmd.RegisterFlagCompletionFunc("policy", cobra.FixedCompletions(presetNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("on-predicted-failure", cobra.FixedCompletions(actionNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func actionNames() (names []string) {
	for _, action := range predict.Actions() {
		names = append(names, string(action))
	}
	return names
}

// presetNames gives the presets for the shell, with what they are for.
func presetNames() (names []string) {
	for _, preset := range migration.Presets() {
		names = append(names, cobra.CompletionWithDesc(string(preset.Name), preset.About))
	}
	return names
}

// presetHelp explains them.
func presetHelp() string {
	var text strings.Builder
	for _, preset := range migration.Presets() {
		fmt.Fprintf(&text, "\n  %-10s %s", preset.Name, preset.About)
	}
	return text.String()
}

// check refuses flags that exclude each other.
func (f migrateFlags) check(cmd *cobra.Command) error {
	switch {
	case f.watch && f.wait:
		return misused(cmd, "--watch and --wait exclude each other")
	case f.dryRun && (f.watch || f.wait):
		return misused(cmd, "with --dry-run there is nothing to wait for")
	case f.force && f.onFailure != "":
		return misused(cmd, "--force and --on-predicted-failure exclude each other")
	case f.onFailure != "" && !slices.Contains(actionNames(), f.onFailure):
		return misused(cmd, fmt.Sprintf("--on-predicted-failure is %s, not %q", strings.Join(actionNames(), " or "), f.onFailure))
	}
	return nil
}

func (f migrateFlags) policy() *godwitv1.MigrationPolicy {
	return &godwitv1.MigrationPolicy{
		CopyLimitMs:   f.copyMax.Milliseconds(),
		SwitchLimitMs: f.switchMax.Milliseconds(),
		BandwidthMax:  uint64(f.bandwidthMax),
		BlackoutMaxMs: f.blackoutMax.Milliseconds(),

		OnPredictedFailure: f.onFailure, Force: f.force, ThrottleMax: f.throttleMax, Preset: f.preset,
	}
}

func (a *App) migrate(ctx context.Context, c *client.Client, vm string, chosen migrateFlags) error {
	request := &godwitv1.CreateMigrationRequest{
		Vm: vm, Target: chosen.target, Reason: chosen.reason, RequestId: chosen.request, Version: chosen.version,
		Policy: chosen.policy(),
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
