package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volume"
	"godwit.dev/godwit/internal/volumeserver"
)

const volumeHelp = `A volume is a disk that a volume server serves to hosts by NBD. The commands
create, grow, delete and list are for the machine of the volume server: they ask
it by its socket.

While no host holds a volume, it can be filled and read there, for example by
  qemu-img convert -n -O raw disk.qcow2 \
    nbd+unix:///web1?socket=/run/godwit-volume/nbd.sock`

// volumeCall is one call of a volume server.
type volumeCall func(ctx context.Context, c *client.VolumeServer, name string) error

func newVolumeCommand(app *App) *cobra.Command {
	cmd := group("volume", "Serve network volumes and manage them", volumeHelp,
		"  godwit volume create web1 --size 20GiB",
		newVolumeServe(app), newVolumeToken(app), newVolumeCreate(app), newVolumeGrow(app), newVolumeDelete(app), newVolumeList(app), newVolumeServers(app))
	return cmd
}

// callVolumes runs do with a client of the volume server of a socket.
func (a *App) callVolumes(ctx context.Context, socket string, limit time.Duration, do func(context.Context, *client.VolumeServer) error) error {
	c, err := client.DialVolumeServer(client.Config{Server: socket})
	if err != nil {
		return hinted(err, "give the socket of a volume server of this machine: --volume-server "+volumeserver.DefaultSocket)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return do(ctx, c)
}

// volumeFlags are those of every command that asks a volume server.
func (a *App) volumeFlags(cmd *cobra.Command, socket *string, limit *time.Duration) {
	cmd.Flags().StringVar(socket, "volume-server", a.env("GODWIT_VOLUME_SERVER", volumeserver.DefaultSocket),
		"the volume server's `socket` (GODWIT_VOLUME_SERVER)")
	addTimeout(cmd, limit)
}

// volumeCommand builds a command that makes calls about one volume.
func (a *App) volumeCommand(use, short, long, example string, complete bool, do volumeCall) *cobra.Command {
	var limit time.Duration
	var socket string
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example, Args: exactly("VOLUME"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
			if complete && len(args) == 0 {
				found = a.volumeNames(cmd.Context(), socket)
			}
			return found, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.callVolumes(cmd.Context(), socket, limit, func(ctx context.Context, c *client.VolumeServer) error {
				return do(ctx, c, args[0])
			})
		},
	}
	a.volumeFlags(cmd, &socket, &limit)
	return cmd
}

func (a *App) volumeNames(ctx context.Context, socket string) (found []cobra.Completion) {
	_ = a.callVolumes(ctx, socket, completeLimit, func(ctx context.Context, c *client.VolumeServer) error {
		response, err := c.List(ctx, &godwitv1.ListVolumesRequest{})
		for _, v := range response.GetVolumes() {
			found = append(found, v.GetName())
		}
		return err // a shell has no place to show it
	})
	return found
}

func newVolumeToken(app *App) *cobra.Command {
	return newTokenCommand(app, tokenCommand{
		kind: pki.Volume, use: "token SERVER", short: "Make a token that enrols one volume server",
		long: `Token prints a secret with which one new volume server, of that name, gets its
certificate. It can be used once and until it expires. It is the fleet's server
that makes it.`,
		example: "  godwit volume token v1\n  godwit volume token v1 --valid 10m --json | jq -r .token",
	})
}

func newVolumeCreate(app *App) *cobra.Command {
	var size fleet.Bytes
	var device string
	cmd := app.volumeCommand("create VOLUME", "Create a volume",
		`Create makes a volume of zeroes, which takes no room until it is written to; or,
with --device, makes a block device of the volume server's machine a volume.`,
		"  godwit volume create web1 --size 20GiB\n  godwit volume create db --device /dev/vg0/db", false,
		func(ctx context.Context, c *client.VolumeServer, name string) error {
			response, err := c.Create(ctx, &godwitv1.CreateVolumeRequest{Name: name, SizeBytes: uint64(size), Device: device})
			if err != nil {
				return named("create", "volume "+name, err)
			}
			return app.printVolume(response.GetVolume(), "created")
		})
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("size") == cmd.Flags().Changed("device") {
			return misused(cmd, "give either --size or --device")
		}
		return nil
	}
	bytesFlag(cmd, &size, "size", 1, volume.MaxSize, "size of the volume, such as 20GiB")
	cmd.Flags().StringVar(&device, "device", "", "absolute `path` of the block device to serve")
	return cmd
}

func newVolumeGrow(app *App) *cobra.Command {
	var size fleet.Bytes
	cmd := app.volumeCommand("grow VOLUME", "Make a volume larger",
		`Grow gives a volume a new size, which is not less than the one it has; also
while it is used. Whoever is connected sees it when connecting anew. Of a block
device give the size that it has by now.`,
		"  godwit volume grow web1 --size 40GiB", true,
		func(ctx context.Context, c *client.VolumeServer, name string) error {
			response, err := c.Grow(ctx, &godwitv1.GrowVolumeRequest{Name: name, SizeBytes: uint64(size)})
			if err != nil {
				return named("grow", "volume "+name, err)
			}
			return app.printVolume(response.GetVolume(), "grown")
		})
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return demand(cmd, "size") }
	bytesFlag(cmd, &size, "size", 1, volume.MaxSize, "new size of the volume, such as 40GiB")
	return cmd
}

func (a *App) printVolume(v *godwitv1.Volume, done string) error {
	return a.printOne(v, func(w io.Writer) {
		fmt.Fprintf(w, "volume %s %s: %s\n", v.GetName(), done, size(v.GetSizeBytes()))
	})
}

func newVolumeDelete(app *App) *cobra.Command {
	return app.volumeCommand("delete VOLUME", "Delete a volume with all its bytes",
		`Delete removes a volume. It is refused while a host holds it, is to get it, or
anybody is connected. A block device keeps its bytes, and is no volume any more.`,
		"  godwit volume delete web1", true,
		func(ctx context.Context, c *client.VolumeServer, name string) error {
			if _, err := c.Delete(ctx, &godwitv1.DeleteVolumeRequest{Name: name}); err != nil {
				return named("delete", "volume "+name, err)
			}
			return app.printDeleted("volume", name)
		})
}

func newVolumeList(app *App) *cobra.Command {
	var limit time.Duration
	var socket string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the volumes of a volume server",
		Long: `List shows every volume: its size, what it takes of the disk, which host holds
it and which stands by, each with the epoch, and how many connections it has.`,
		Example: "  godwit volume list",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.callVolumes(cmd.Context(), socket, limit, func(ctx context.Context, c *client.VolumeServer) error {
				response, err := c.List(ctx, &godwitv1.ListVolumesRequest{})
				if err != nil {
					return named("list", "volumes", err)
				}
				return printList(app, "volumes", response.GetVolumes(), app.volumeTable)
			})
		},
	}
	app.volumeFlags(cmd, &socket, &limit)
	return cmd
}

func (a *App) volumeTable(volumes []*godwitv1.Volume) table {
	t := table{style: a.style()}
	t.add("NAME", "SIZE", "USED", "HOLDER", "STANDBY", "CONNECTIONS", "PROBLEM")
	for _, v := range volumes {
		if v.GetProblem() != "" {
			t.add(v.GetName(), "", "", "", "", "", v.GetProblem())
			continue
		}
		t.add(v.GetName(), size(v.GetSizeBytes()), size(v.GetAllocatedBytes()), holder(v), standbys(v), number(v.GetConnections()), "")
	}
	return t
}

// holder gives the active lease, as HOST@EPOCH.
func holder(v *godwitv1.Volume) string {
	if v.GetHolder() == "" {
		return ""
	}
	return fmt.Sprintf("%s@%d", v.GetHolder(), v.GetEpoch())
}

func standbys(v *godwitv1.Volume) (text string) {
	for i, standby := range v.GetStandbys() {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf("%s@%d", standby.GetHost(), standby.GetEpoch())
	}
	return text
}
