package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

const lostHelp = `Lost gives up a host that does not come back. Its VMs have then failed, and can
be started elsewhere; a migration from or to it waits for it no longer, and ends
without it. The host is cordoned.

Say it only once the host is switched off for good, or its QEMUs have certainly
ended. Godwit can't know, and takes your word: of a VM that does run there a
second one can be started. While the host's agent has a session, lost is
refused; and so it is for half a minute after a server has begun to lead, if
that has not heard of the host: its agent may be on the way.

The memory of the VMs is lost. A VM that has just been moved to the host, and
that is known never to have run there, still is at its source: before this
command, have it back by godwit migration return.

Should the host come back after all, what it still has is removed. To have VMs
placed there again: godwit host uncordon.`

func newHostLost(app *App) *cobra.Command {
	var off bool
	var version int64
	cmd := app.callCommand("lost HOST", "Give up a host that is off for good", lostHelp,
		"  godwit host lost host-b --is-off", hostNames,
		func(ctx context.Context, c *client.Client, name string) error {
			response, err := c.Host.DeclareLost(ctx, &godwitv1.DeclareHostLostRequest{Name: name, IsOff: off, Version: version})
			if err != nil {
				return named("declare lost", "host "+name, err)
			}
			return app.printOne(response, func(w io.Writer) { printLost(w, response) })
		})
	cmd.Flags().BoolVar(&off, "is-off", false, "that you have made sure that it is off (required)")
	versionFlag(cmd, &version)
	return cmd
}

// printLost says what has become of all that was on a lost host, and what can be
// done.
func printLost(w io.Writer, response *godwitv1.DeclareHostLostResponse) {
	fmt.Fprintf(w, "host %s is given up; its state is %s\n", response.GetHost().GetName(), hostState(response.GetHost()))
	for _, vm := range response.GetVms() {
		fmt.Fprintf(w, "vm %s is %s", vm.GetName(), vm.GetPhase())
		switch {
		case vm.GetMigration() != "":
			fmt.Fprintf(w, "; migration %s decides on it", vm.GetMigration())
		case vm.GetPhase() == "failed":
			fmt.Fprintf(w, "; start it elsewhere: godwit vm start %s", vm.GetName())
		}
		fmt.Fprintln(w)
	}
	for _, migration := range response.GetMigrations() {
		migrationLine(migration)(w)
		for _, remedy := range migration.GetRemedies() {
			fmt.Fprintf(w, "  %s\n", shellLine(remedy))
		}
	}
}
