package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
)

// exportLimit is how long an export may take unless --timeout says otherwise:
// it reads all records, where other commands read some.
const exportLimit = time.Hour

func newMigrationExport(app *App) *cobra.Command {
	var vm, state, since string
	limit := exportLimit
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print whole records of migrations as JSON lines, the oldest first",
		Long: `Export prints the records of migrations, one JSON object a line, the oldest
first. They are those of godwit migration show --json, and of the file that
godwit server --export-migrations writes.

With --since it prints those that ended at that time or later, and those that
have not ended yet: who exports every day what is new since the day before gets
each final record.`,
		Example: `  godwit migration export > migrations.jsonl
  godwit migration export --since 24h --state aborted | jq -r .cause
  godwit migration export --vm web1 --since 2026-11-01`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkNoneEmpty(cmd); err != nil {
				return err
			}
			request := &godwitv1.ListMigrationsRequest{Vm: vm, State: state, OldestFirst: true}
			if state != "" && !slices.Contains(migration.States(), migration.State(state)) {
				return misused(cmd, fmt.Sprintf("--state: %q is none of %s", state, strings.Join(stateNames(), ", ")))
			}
			if since != "" {
				from, err := parseSince(since, app.Now())
				if err != nil {
					return misused(cmd, "--since: "+err.Error())
				}
				request.Since = timestamppb.New(from)
			}
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				return app.export(ctx, c, request)
			})
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "only what ended at this `time` or later: 24h ago, 2026-11-01, or 2026-11-01T03:00:00Z")
	cmd.Flags().StringVar(&vm, "vm", "", "only migrations of this `vm`")
	cmd.Flags().StringVar(&state, "state", "", "only migrations in this `state`")
	durationFlag(cmd, &limit, "timeout", time.Millisecond, maxCallLimit, "how long the whole export may take")
	app.completeFlag(cmd, "vm", vmNames)
	app.completeFlag(cmd, "state", func(context.Context, *client.Client) ([]string, error) { return stateNames(), nil })
	return cmd
}

// export prints records as they come, so that their number needs no memory.
func (a *App) export(ctx context.Context, c *client.Client, request *godwitv1.ListMigrationsRequest) error {
	for m, err := range c.MigrationHistory(ctx, request) {
		if err != nil {
			return named("export", "migrations", err)
		}
		if err := a.printLine(m); err != nil {
			return err
		}
	}
	return nil
}

func stateNames() (names []string) {
	for _, state := range migration.States() {
		names = append(names, string(state))
	}
	return names
}

// parseSince reads a time, a date or how long ago.
func parseSince(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, nil
	}
	if day, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return day, nil
	}
	return time.Time{}, fmt.Errorf("%q is no time: write how long ago, such as 24h, a date, such as 2026-11-01, or both with zone, such as 2026-11-01T03:00:00Z", text)
}
