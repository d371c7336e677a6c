package cli

import (
	"context"
	"net"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func newVolumeServers(app *App) *cobra.Command {
	return group("server", "Look at the fleet's volume servers",
		`The fleet's server knows each volume server that has enrolled and where it is
reached. A VM's disk names it: kind volume, server, volume.`,
		"  godwit volume server list", newVolumeServerList(app))
}

func newVolumeServerList(app *App) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the fleet's volume servers",
		Long: `List shows every volume server that the fleet's server knows: where hosts
connect to its disks, where it is asked for leases, and its version.`,
		Example: "  godwit volume server list",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				response, err := c.VolumeServers.List(ctx, &godwitv1.ListVolumeServersRequest{})
				if err != nil {
					return named("list", "volume servers", err)
				}
				return printList(app, "servers", response.GetServers(), app.volumeServerTable)
			})
		},
	}
	addTimeout(cmd, &limit)
	return cmd
}

func (a *App) volumeServerTable(servers []*godwitv1.VolumeServer) table {
	t := table{style: a.style()}
	t.add("NAME", "NBD", "CONTROL", "VERSION")
	for _, s := range servers {
		at := func(port uint32) string { return net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(port))) }
		t.add(s.GetName(), at(s.GetNbdPort()), at(s.GetControlPort()), s.GetSoftwareVersion())
	}
	return t
}
