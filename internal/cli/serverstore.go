package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/server"
	"godwit.dev/godwit/internal/store"
)

const backupHelp = `Backup writes a copy of all records to a file, in the form of an etcd snapshot,
while the server goes on. It holds the key of the fleet's authority: who has it
can be any agent or administrator.

Records change whenever a VM starts, stops or moves. The younger the backup, the
less has to be put in order after a restore.`

const restoreHelp = `Restore puts the records of a backup in the place of the built-in etcd, in a
data folder that has none. The server must not run. Stop it, move the folder
"etcd" of its data folder away, restore, and start it again.

VMs run on all the while. But they may have moved since the backup was taken, so
the server then does nothing at all until "godwit server accept-restore".

Of an external etcd restore the members with etcdutl; docs/operations.md says
how.`

const acceptHelp = `Accept-restore makes a store that was restored from a backup the truth again. A
server does nothing with such a store by itself, since VMs have perhaps moved,
started or stopped after the backup: it starts and stops nothing, and tells no
host anything. It finds out that a store is an old copy by what its agents know.

First every host that the records know must have told what it has, so their
agents have to run. Then each VM is recorded where it is, with the epoch that it
has there. One of which no host has an instance counts as failed, with an epoch
above all that can have been given since. Migrations of the backup end. What was
changed is printed.`

const statusHelp = `Status shows what the server that is asked knows: which server leads, and
whether the fleet stands still because its store was restored from a backup.`

// newServerChildren are the commands about a server's store.
func newServerChildren(app *App) []*cobra.Command {
	return []*cobra.Command{newStatusCommand(app), newBackupCommand(app), newRestoreCommand(app), newAcceptCommand(app)}
}

func newStatusCommand(app *App) *cobra.Command {
	return app.serverCall("status", "Show which server leads", statusHelp, "  godwit server status",
		func(ctx context.Context, c *client.Client) error {
			status, err := c.Server.Status(ctx, &godwitv1.StatusRequest{})
			if err != nil {
				return err
			}
			return app.printOne(status, func(w io.Writer) {
				fmt.Fprintf(w, "server  %s\nleader  %s\n", status.GetUrl(), cmp.Or(status.GetLeader(), "-"))
				if why := status.GetRestored(); why != "" {
					fmt.Fprintf(w, "The store was restored, and nothing is done until `godwit server accept-restore`: %s\n", why)
				}
			})
		})
}

// serverCall builds a command without arguments that calls the server.
func (a *App) serverCall(use, short, long, example string, do func(context.Context, *client.Client) error) *cobra.Command {
	limit := callLimit
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.call(cmd.Context(), limit, do) },
	}
	addTimeout(cmd, &limit)
	return cmd
}

func newBackupCommand(app *App) *cobra.Command {
	return &cobra.Command{
		Use: "backup FILE", Short: "Write a backup of all records", Long: backupHelp,
		Example: "  godwit server backup /backup/godwit-$(date +%F).db", Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return app.call(cmd.Context(), 0, func(ctx context.Context, c *client.Client) error {
				return app.backup(ctx, c, args[0])
			})
		},
	}
}

// backup writes to a file beside the one that is wanted, which so is whole or
// not there.
func (a *App) backup(ctx context.Context, c *client.Client, path string) (err error) {
	stream, err := c.Server.Backup(ctx, &godwitv1.BackupRequest{})
	if err != nil {
		return err
	}
	defer stream.Close()
	file, err := durable.Create(path, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Discard()) }()
	size := 0
	for stream.Receive() {
		n, err := file.Write(stream.Msg().GetData())
		if size += n; err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if err := file.Commit(); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{"file": path, "bytes": size})
	}
	return a.printText(func(w io.Writer) { fmt.Fprintf(w, "%s: %v\n", path, fleet.Bytes(size)) })
}

func newRestoreCommand(app *App) *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Put a backup in the place of the records", Long: restoreHelp,
		Example: "  godwit server restore /backup/godwit.db --data /var/lib/godwit/server", Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := filepath.Join(data, "etcd")
			if err := server.Restore(cmd.Context(), args[0], store.Config{Dir: dir}); err != nil {
				return err
			}
			return app.printText(func(w io.Writer) {
				fmt.Fprintf(w, "restored to %s; start the server, then: godwit server accept-restore\n", dir)
			})
		},
	}
	cmd.Flags().StringVar(&data, "data", defaultServerData, "`folder` of the server's data")
	return cmd
}

func newAcceptCommand(app *App) *cobra.Command {
	var lost []string
	cmd := app.serverCall("accept-restore", "Let the fleet go on with a restored store", acceptHelp,
		"  godwit server accept-restore\n  godwit server accept-restore --lost h7",
		func(ctx context.Context, c *client.Client) error {
			answer, err := c.Server.AcceptRestore(ctx, &godwitv1.AcceptRestoreRequest{LostHosts: lost})
			if err != nil {
				return err
			}
			return app.printOne(answer, func(w io.Writer) {
				for _, change := range answer.GetChanges() {
					fmt.Fprintln(w, change)
				}
				fmt.Fprintf(w, "accepted, with %d changes\n", len(answer.GetChanges()))
			})
		})
	cmd.Flags().StringSliceVar(&lost, "lost", nil, "`hosts` on which nothing runs any more, and that will not be heard of")
	return cmd
}
