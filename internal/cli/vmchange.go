package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// guestMay is how much longer than the server a guest may take for a card.
const guestMay = 40 * time.Second

// hotHelp is what is to be said of all changes of a VM's hardware.
const hotHelp = `
A VM that is stopped has it when it is started. One that runs gets it at once;
while a migration holds it, it is refused.`

const removeHelp = `
The guest has to let go of it, for which it has 30 seconds. If it does not, the
VM is as it was; what it lets go of later is removed then.`

func newVMDisk(app *App) *cobra.Command {
	return group("disk", "Add disks to a VM, and remove them",
		"Disk changes which disks a VM has, while it runs or is stopped.",
		"  godwit vm disk add web1 --name data --path /srv/data.qcow2 --format qcow2\n  godwit vm disk remove web1 data",
		newDiskAdd(app), newDiskRemove(app))
}

func newVMPort(app *App) *cobra.Command {
	return group("port", "Add network ports to a VM, and remove them",
		"Port changes which ports a VM has, while it runs or is stopped.",
		"  godwit vm port add web1 --name dmz --network red\n  godwit vm port remove web1 dmz",
		newPortAdd(app), newPortRemove(app))
}

// hotChange are the flags of every change of a VM's hardware.
type hotChange struct {
	version int64
	request string
	noWait  bool
	limit   time.Duration
}

func (h *hotChange) addFlags(cmd *cobra.Command) {
	versionFlag(cmd, &h.version)
	requestFlag(cmd, &h.request)
	addTimeout(cmd, &h.limit)
	addNoWait(cmd, &h.noWait)
	cmd.Flags().Lookup("timeout").Usage += ", beyond the guest's time"
}

// run orders a change and waits until it is done.
func (h *hotChange) run(ctx context.Context, app *App, name string, told func(context.Context, *client.Client) (*godwitv1.VM, error)) error {
	var sequence uint64
	change := order{op: "change", told: func(ctx context.Context, c *client.Client) (*godwitv1.VM, error) {
		vm, err := told(ctx, c)
		sequence = vm.GetChange().GetSequence()
		return vm, err
	}}
	change.done = func(vm *godwitv1.VM) (bool, error) { return changed(vm, sequence) }
	change.say = func(vm *godwitv1.VM) func(io.Writer) {
		return func(w io.Writer) { fmt.Fprintf(w, "vm %s: %s\n", name, changeLine(vm.GetChange())) }
	}
	return app.call(ctx, h.limit+guestMay, func(ctx context.Context, c *client.Client) error {
		return app.give(ctx, c, change, name, h.noWait)
	})
}

// changed is what a change of the hardware is waited for by.
func changed(vm *godwitv1.VM, sequence uint64) (bool, error) {
	change := vm.GetChange()
	switch {
	case change.GetSequence() > sequence:
		return false, &fleet.Error{Code: fleet.Conflict, Cause: "somebody has changed it again", Hint: "`godwit vm show " + vm.GetName() + "` tells what it has"}
	case change.GetState() == string(fleet.ChangeFailed):
		return false, &fleet.Error{Code: fleet.Failed, Cause: changeLine(change)}
	}
	return change.GetState() == string(fleet.ChangeDone), nil
}

// changeLine says what becomes of a change.
func changeLine(change *godwitv1.HardwareChange) string {
	text := "add "
	if change.GetRemove() {
		text = "remove "
	}
	if change.GetDisk() != nil {
		text += "disk " + change.GetDisk().GetName()
	} else {
		text += "port " + change.GetPort().GetName()
	}
	text += ": " + change.GetState()
	if change.GetCause() != "" {
		text += ": " + change.GetCause()
	}
	return text
}

func newDiskAdd(app *App) *cobra.Command {
	var chosen hotChange
	disk := &godwitv1.Disk{}
	cmd := &cobra.Command{
		Use:   "add VM",
		Short: "Add a disk to a VM",
		Long: `Add gives a VM one more disk: a file that all hosts which may run the VM can
reach, or a volume of a volume server. The flags are the fields of a disk in the
file for godwit vm create.` + hotHelp + waitHelp,
		Example: `  godwit vm disk add web1 --name data --path /srv/data.qcow2 --format qcow2
  godwit vm disk add web1 --name data --kind volume --server v1 --volume data1`,
		Args:              exactly("VM"),
		ValidArgsFunction: app.completeFirst(vmNames),
		PreRunE:           func(cmd *cobra.Command, _ []string) error { return demand(cmd, "name") },
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if disk.Path != "" {
				if disk.Path, err = filepath.Abs(disk.Path); err != nil {
					return err
				}
			}
			return chosen.run(cmd.Context(), app, args[0], func(ctx context.Context, c *client.Client) (*godwitv1.VM, error) {
				response, err := c.VM.AddDisk(ctx, &godwitv1.AddDiskRequest{Name: args[0], Disk: disk, Version: chosen.version, RequestId: chosen.request})
				return response.GetVm(), err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&disk.Name, "name", "", "`name` of the disk in the VM")
	flags.StringVar(&disk.Kind, "kind", string(fleet.DiskFile), "file or volume")
	flags.StringVar(&disk.Path, "path", "", "of a file: its `path` on every host")
	flags.StringVar(&disk.Format, "format", "", "of a file: raw or qcow2")
	flags.StringVar(&disk.Server, "server", "", "of a volume: the `name` of its volume server")
	flags.StringVar(&disk.Volume, "volume", "", "of a volume: its `name` there")
	flags.BoolVar(&disk.ReadOnly, "read-only", false, "the guest may not write it")
	chosen.addFlags(cmd)
	app.completeFlag(cmd, "kind", words("file", "volume"))
	app.completeFlag(cmd, "format", words("raw", "qcow2"))
	app.completeFlag(cmd, "server", volumeServerNames)
	return cmd
}

func newPortAdd(app *App) *cobra.Command {
	var chosen hotChange
	port := &godwitv1.Port{}
	cmd := &cobra.Command{
		Use:   "add VM",
		Short: "Add a network port to a VM",
		Long: `Add gives a VM one more port. What is left out is chosen: the MAC address, and
an IP address of each family that the network has subnets of. The flags are the
fields of a port in the file for godwit vm create.` + hotHelp + waitHelp,
		Example: `  godwit vm port add web1 --name dmz --network red
  godwit vm port add web1 --name dmz --network red --ip 10.30.0.7 --queues 2`,
		Args:              exactly("VM"),
		ValidArgsFunction: app.completeFirst(vmNames),
		PreRunE:           func(cmd *cobra.Command, _ []string) error { return demand(cmd, "name", "network") },
		RunE: func(cmd *cobra.Command, args []string) error {
			return chosen.run(cmd.Context(), app, args[0], func(ctx context.Context, c *client.Client) (*godwitv1.VM, error) {
				response, err := c.VM.AddPort(ctx, &godwitv1.AddPortRequest{Name: args[0], Port: port, Version: chosen.version, RequestId: chosen.request})
				return response.GetVm(), err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&port.Name, "name", "", "`name` of the port in the VM")
	flags.StringVar(&port.Network, "network", "", "the `network` that it is in")
	flags.StringVar(&port.Mac, "mac", "", "its MAC `address` (default: one that is free)")
	flags.StringSliceVar(&port.Ips, "ip", nil, "an IP `address` of it; can be given again")
	flags.Int32Var(&port.Queues, "queues", 1, "`number` of queues")
	chosen.addFlags(cmd)
	app.completeFlag(cmd, "network", networkNames)
	return cmd
}

func newDiskRemove(app *App) *cobra.Command {
	return app.removeCommand("disk", "Remove takes a disk from a VM. What is on it stays."+removeHelp,
		func(vm *godwitv1.VM) (names []string) {
			for _, disk := range vm.GetSpec().GetDisks() {
				names = append(names, disk.GetName())
			}
			return names
		},
		func(ctx context.Context, c *client.Client, vm, name string, h *hotChange) (*godwitv1.VM, error) {
			response, err := c.VM.RemoveDisk(ctx, &godwitv1.RemoveDiskRequest{Name: vm, Disk: name, Version: h.version, RequestId: h.request})
			return response.GetVm(), err
		})
}

func newPortRemove(app *App) *cobra.Command {
	return app.removeCommand("port", "Remove takes a port from a VM, and frees its addresses."+removeHelp,
		func(vm *godwitv1.VM) (names []string) {
			for _, port := range vm.GetSpec().GetPorts() {
				names = append(names, port.GetName())
			}
			return names
		},
		func(ctx context.Context, c *client.Client, vm, name string, h *hotChange) (*godwitv1.VM, error) {
			response, err := c.VM.RemovePort(ctx, &godwitv1.RemovePortRequest{Name: vm, Port: name, Version: h.version, RequestId: h.request})
			return response.GetVm(), err
		})
}

// removeCommand removes a disk or a port; have gives the names of those of a VM.
func (a *App) removeCommand(
	what, long string, have func(*godwitv1.VM) []string,
	remove func(ctx context.Context, c *client.Client, vm, name string, h *hotChange) (*godwitv1.VM, error),
) *cobra.Command {
	var chosen hotChange
	cmd := &cobra.Command{
		Use:     "remove VM NAME",
		Short:   "Remove a " + what + " from a VM",
		Long:    long + hotHelp + waitHelp,
		Example: fmt.Sprintf("  godwit vm %[1]s remove web1 NAME\n  godwit vm %[1]s remove web1 NAME --no-wait", what),
		Args:    exactly("VM", "NAME"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.ask(cmd.Context(), vmNames)
			case 1:
				return a.ask(cmd.Context(), func(ctx context.Context, c *client.Client) ([]string, error) {
					response, err := c.VM.Get(ctx, &godwitv1.GetVMRequest{Name: args[0]})
					return have(response.GetVm()), err
				})
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return chosen.run(cmd.Context(), a, args[0], func(ctx context.Context, c *client.Client) (*godwitv1.VM, error) {
				return remove(ctx, c, args[0], args[1], &chosen)
			})
		},
	}
	chosen.addFlags(cmd)
	return cmd
}

// words completes some words without asking anybody.
func words(these ...string) names {
	return func(context.Context, *client.Client) ([]string, error) { return these, nil }
}

func volumeServerNames(ctx context.Context, c *client.Client) (names []string, err error) {
	list, err := c.VolumeServers.List(ctx, &godwitv1.ListVolumeServersRequest{})
	for _, server := range list.GetServers() {
		names = append(names, server.GetName())
	}
	return names, err
}
