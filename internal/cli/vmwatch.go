package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func newVMWatch(app *App) *cobra.Command {
	return &cobra.Command{
		Use:   "watch [VM]",
		Short: "Follow what VMs do",
		Long: `Watch prints a line for the present state of every VM, or of the one given, and
then one for each change, until it is interrupted. With --json each line is an
object with the VM, and "deleted" if it is gone.`,
		Example: `  godwit vm watch
  godwit vm watch web1 --json`,
		Args:              atMost("VM"),
		ValidArgsFunction: app.completeFirst(vmNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &godwitv1.WatchVMsRequest{}
			subject := "vms"
			if len(args) > 0 {
				request.Name, subject = args[0], "vm "+args[0]
			}
			err := app.call(cmd.Context(), 0, func(ctx context.Context, c *client.Client) error {
				return app.watchVMs(ctx, c, request)
			})
			if errors.Is(err, context.Canceled) {
				return nil // Ctrl-C is how a watch of VMs ends
			}
			return named("watch", subject, err)
		},
	}
}

func (a *App) watchVMs(ctx context.Context, c *client.Client, request *godwitv1.WatchVMsRequest) error {
	if name := request.GetName(); name != "" { // the watch of a name that does not exist would wait for it
		if _, err := c.VM.Get(ctx, &godwitv1.GetVMRequest{Name: name}); err != nil {
			return err
		}
	}
	stream, err := c.VM.Watch(ctx, request)
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		change := stream.Msg()
		if a.json {
			err = a.printLine(change)
		} else {
			err = a.printText(a.changeLine(change))
		}
		if err != nil {
			return err
		}
	}
	return stream.Err()
}

func (a *App) changeLine(change *godwitv1.WatchVMsResponse) func(io.Writer) {
	return func(w io.Writer) {
		vm := change.GetVm()
		fmt.Fprint(w, a.Now().Local().Format("15:04:05 "))
		switch {
		case change.GetDeleted():
			fmt.Fprintf(w, "vm %s is deleted\n", vm.GetName())
		case vm.GetMigration() != "":
			fmt.Fprintf(w, "migration %s: ", vm.GetMigration())
			vmLine(vm)(w)
		default:
			vmLine(vm)(w)
		}
	}
}
