package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

func newVMCommand(app *App) *cobra.Command {
	return group("vm", "Create, start, stop and look at VMs",
		`A VM is a record: its spec, its owner (the host whose instance counts) and its
phase. It keeps its name, its disks and its addresses through every move.`,
		"  godwit vm list\n  godwit vm create -f web1.yaml",
		newVMCreate(app), newVMList(app), newVMShow(app), newVMStart(app),
		newVMStop(app), newVMDelete(app), newVMDisk(app), newVMPort(app), newVMWatch(app), newVMConsole(app))
}

func newVMList(app *App) *cobra.Command {
	var host string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List VMs",
		Long: `List shows every VM with its owner, phase, size, addresses and the migration
that holds it, if any.`,
		Example: `  godwit vm list
  godwit vm list --host host-a
  godwit vm list --json | jq -r '.vms[].name'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				vms, err := collect(c.VMs(ctx, host))
				if err == nil && len(vms) == 0 && host != "" { // does it have none, or is there none of that name?
					_, err = c.Host.Get(ctx, &godwitv1.GetHostRequest{Name: host})
				}
				if err != nil {
					return named("list", "vms", err)
				}
				return printList(app, "vms", vms, app.vmTable)
			})
		},
	}
	cmd.Flags().StringVar(&host, "host", "", "only VMs that this `host` owns")
	addTimeout(cmd, &limit)
	app.completeFlag(cmd, "host", hostNames)
	return cmd
}

func newVMShow(app *App) *cobra.Command {
	return app.vmCommand("show VM", "Show one VM",
		"Show prints everything the record of a VM says.",
		"  godwit vm show web1\n  godwit vm show web1 --json | jq .owner",
		func(ctx context.Context, c *client.Client, name string) error {
			response, err := c.VM.Get(ctx, &godwitv1.GetVMRequest{Name: name})
			if err != nil {
				return named("show", "vm "+name, err)
			}
			vm := response.GetVm()
			waits := app.imageWaitOf(ctx, c, vm)
			return app.printOne(vm, func(w io.Writer) { app.showVM(w, vm, waits) })
		})
}

func newVMStart(app *App) *cobra.Command {
	var host string
	var noWait bool
	var version int64
	cmd := app.vmCommand("start VM", "Start a stopped VM",
		`Start runs the VM on the host that --host names, or else where it fits best. If
no host fits, it says for each why not.`+waitHelp,
		"  godwit vm start web1\n  godwit vm start web1 --host host-b --no-wait",
		func(ctx context.Context, c *client.Client, name string) error {
			start := order{op: "start", done: runs, told: func(ctx context.Context, c *client.Client) (*godwitv1.VM, error) {
				response, err := c.VM.Start(ctx, &godwitv1.StartVMRequest{Name: name, Host: host, Version: version})
				return response.GetVm(), err
			}}
			return app.give(ctx, c, start, name, noWait)
		})
	cmd.Flags().StringVar(&host, "host", "", "start it on this `host`")
	versionFlag(cmd, &version)
	addNoWait(cmd, &noWait)
	app.completeFlag(cmd, "host", readyHosts)
	return cmd
}

func newVMStop(app *App) *cobra.Command {
	var noWait bool
	var version int64
	var limit time.Duration
	grace := 30 * time.Second
	cmd := &cobra.Command{
		Use:   "stop VM",
		Short: "Stop a running VM",
		Long: `Stop asks the guest to power off and ends the instance when it does not within
--grace. A migration that has not committed is cancelled first.` + waitHelp,
		Example:           "  godwit vm stop web1\n  godwit vm stop web1 --grace 0s   # at once, like pulling the plug",
		Args:              exactly("VM"),
		ValidArgsFunction: app.completeFirst(vmNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			stop := order{op: "stop", done: stands, told: func(ctx context.Context, c *client.Client) (*godwitv1.VM, error) {
				response, err := c.VM.Stop(ctx, &godwitv1.StopVMRequest{Name: args[0], GraceMs: grace.Milliseconds(), Version: version})
				return response.GetVm(), err
			}}
			return app.call(cmd.Context(), limit+grace, func(ctx context.Context, c *client.Client) error {
				return app.give(ctx, c, stop, args[0], noWait)
			})
		},
	}
	durationFlag(cmd, &grace, "grace", 0, time.Hour, "how long the guest may take to power off; 0s ends it at once")
	versionFlag(cmd, &version)
	addTimeout(cmd, &limit)
	addNoWait(cmd, &noWait)
	cmd.Flags().Lookup("timeout").Usage += ", beyond --grace"
	return cmd
}

func newVMDelete(app *App) *cobra.Command {
	var version int64
	cmd := app.vmCommand("delete VM", "Delete the record of a stopped VM",
		`Delete removes the record of a VM that is stopped. Its disks stay as they are,
but for those of kind "local": their host removes them, at once or when it is
back.`,
		"  godwit vm stop web1 && godwit vm delete web1",
		func(ctx context.Context, c *client.Client, name string) error {
			if _, err := c.VM.Delete(ctx, &godwitv1.DeleteVMRequest{Name: name, Version: version}); err != nil {
				return named("delete", "vm "+name, err)
			}
			return app.printDeleted("vm", name)
		})
	versionFlag(cmd, &version)
	return cmd
}

// vmCommand builds a command that makes one call about one VM.
func (a *App) vmCommand(use, short, long, example string, do func(context.Context, *client.Client, string) error) *cobra.Command {
	return a.callCommand(use, short, long, example, vmNames, do)
}

// vmLine tells in one line what a VM is doing.
func vmLine(vm *godwitv1.VM) func(io.Writer) {
	return func(w io.Writer) {
		fmt.Fprintf(w, "vm %s is %s", vm.GetName(), vm.GetPhase())
		if host := vm.GetOwner().GetHost(); host != "" && vm.GetPhase() != "stopped" {
			fmt.Fprintf(w, " on %s", host)
		}
		if cause := vm.GetCause(); cause != "" {
			fmt.Fprintf(w, ": %s", cause)
		}
		fmt.Fprintln(w)
	}
}

func (a *App) vmTable(vms []*godwitv1.VM) table {
	t := table{style: a.style(), states: 2}
	t.add("NAME", "HOST", "PHASE", "CPUS", "MEMORY", "IP", "MIGRATION", "AGE")
	for _, vm := range vms {
		var ips []string
		for _, port := range vm.GetSpec().GetPorts() {
			ips = append(ips, port.GetIps()...)
		}
		t.add(vm.GetName(), vm.GetOwner().GetHost(), vm.GetPhase(), number(vm.GetSpec().GetCpus()),
			size(vm.GetSpec().GetMemoryBytes()), strings.Join(ips, ","), vm.GetMigration(), a.age(vm.GetCreated()))
	}
	return t
}

func (a *App) showVM(w io.Writer, vm *godwitv1.VM, waits string) {
	s, spec := sheet{w, a.style()}, vm.GetSpec()
	s.row("Name", vm.GetName())
	s.row("UID", vm.GetUid())
	s.row("Phase", s.style.state(vm.GetPhase()))
	s.row("Cause", vm.GetCause())
	if owner := vm.GetOwner(); owner.GetHost() != "" {
		s.row("Owner", fmt.Sprintf("%s, epoch %d", owner.GetHost(), owner.GetEpoch()))
	}
	s.row("Migration", vm.GetMigration())
	if vm.GetChange() != nil {
		s.row("Change", changeLine(vm.GetChange()))
	}
	s.row("Waits for", waits)
	s.row("Created", a.moment(vm.GetCreated()))
	s.row("Version", number(vm.GetVersion()))

	s.heading("Machine")
	s.row("CPUs", number(spec.GetCpus()))
	s.row("Memory", size(spec.GetMemoryBytes()))
	s.row("Type", spec.GetMachine())
	s.row("CPU model", spec.GetCpuModel())
	s.row("Accelerator", vm.GetAccel())
	s.row("QEMU", vm.GetQemuVersion())
	s.row("Kernel", spec.GetBoot().GetKernel())
	s.row("Initrd", spec.GetBoot().GetInitrd())
	s.row("Command line", spec.GetBoot().GetCmdline())

	if len(spec.GetDisks()) > 0 {
		s.heading("Disks")
		t := table{}
		t.add("NAME", "KIND", "FORMAT", "ACCESS", "PATH")
		for _, disk := range spec.GetDisks() {
			access := "read-write"
			if disk.GetReadOnly() {
				access = "read-only"
			}
			t.add(disk.GetName(), disk.GetKind(), disk.GetFormat(), access, placeOf(vm, disk))
		}
		s.table(t)
	}
	if len(spec.GetPorts()) > 0 {
		s.heading("Ports")
		t := table{}
		t.add("NAME", "NETWORK", "MAC", "QUEUES", "IP")
		for _, port := range spec.GetPorts() {
			t.add(port.GetName(), port.GetNetwork(), port.GetMac(), number(port.GetQueues()), strings.Join(port.GetIps(), ","))
		}
		s.table(t)
	}
}

// placeOf says where a disk's bytes are.
func placeOf(vm *godwitv1.VM, disk *godwitv1.Disk) string {
	switch fleet.DiskKind(disk.GetKind()) {
	case fleet.DiskVolume:
		return disk.GetVolume() + " of " + disk.GetServer()
	case fleet.DiskLocal:
		return size(disk.GetSizeBytes()) + " on " + cmp.Or(vm.GetLocalHost(), "its first host")
	}
	return disk.GetPath()
}
