package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/pki"
)

func newHostCommand(app *App) *cobra.Command {
	return group("host", "Look at hosts, keep VMs away from them, enrol new ones, give up dead ones",
		`A host is a machine whose agent is connected to the server. A new one joins
with a token that is good for one enrolment.`,
		"  godwit host list\n  godwit host token host-c",
		newHostList(app), newHostShow(app),
		newHostCordon(app, true), newHostCordon(app, false), newHostLost(app), newHostToken(app))
}

func newHostList(app *App) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List hosts",
		Long: `List shows every host with its state, what its VMs have reserved of it, and its
QEMU. A host is down while its agent is not connected; its VMs run on. SEEN is
how long ago it was last heard of.`,
		Example: "  godwit host list\n  godwit host list --json | jq -r '.hosts[] | select(.state == \"down\").name'",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				hosts, err := collect(c.Hosts(ctx))
				if err != nil {
					return named("list", "hosts", err)
				}
				return printList(app, "hosts", hosts, app.hostTable)
			})
		},
	}
	addTimeout(cmd, &limit)
	return cmd
}

func newHostShow(app *App) *cobra.Command {
	return app.callCommand("show HOST", "Show one host",
		`Show prints what a host has, what is reserved of it, what its QEMU can do, the
MTU of its way to other hosts, and its bridges, which provider networks are on.`,
		"  godwit host show host-a", hostNames,
		func(ctx context.Context, c *client.Client, name string) error {
			response, err := c.Host.Get(ctx, &godwitv1.GetHostRequest{Name: name})
			if err != nil {
				return named("show", "host "+name, err)
			}
			host := response.GetHost()
			return app.printOne(host, func(w io.Writer) { app.showHost(w, host) })
		})
}

func newHostCordon(app *App, cordoned bool) *cobra.Command {
	verb, short := "cordon", "Keep new VMs away from a host"
	long := `Cordon marks a host so that no VM is started on it or moved to it. What runs
there runs on.`
	if !cordoned {
		verb, short, long = "uncordon", "Let a host take VMs again", "Uncordon removes the mark that cordon sets."
	}
	var version int64
	cmd := app.callCommand(verb+" HOST", short, long, "  godwit host "+verb+" host-a", hostNames,
		func(ctx context.Context, c *client.Client, name string) error {
			response, err := c.Host.Cordon(ctx, &godwitv1.CordonHostRequest{Name: name, Cordoned: cordoned, Version: version})
			if err != nil {
				return named(verb, "host "+name, err)
			}
			host := response.GetHost()
			return app.printOne(host, func(w io.Writer) {
				fmt.Fprintf(w, "host %s is %s\n", host.GetName(), hostState(host))
			})
		})
	versionFlag(cmd, &version)
	return cmd
}

func newHostToken(app *App) *cobra.Command {
	return newTokenCommand(app, tokenCommand{
		kind: pki.Host, use: "token HOST", short: "Make a token that enrols one agent",
		long: `Token prints a secret with which the agent of one new host, of that name, gets
its certificate. It can be used once and until it expires.`,
		example: "  godwit host token host-c\n  godwit host token host-c --valid 10m --json | jq -r .token",
		known:   hostNames,
	})
}

func (a *App) hostTable(hosts []*godwitv1.Host) table {
	t := table{style: a.style(), states: 1}
	t.add("NAME", "STATE", "ADDRESS", "CPUS", "MEMORY", "QEMU", "ACCEL", "SEEN")
	for _, host := range hosts {
		t.add(host.GetName(), hostState(host), host.GetAddress(),
			fmt.Sprintf("%d/%d", host.GetCpusReserved(), host.GetCpus()),
			size(host.GetMemoryReservedBytes())+"/"+size(host.GetMemoryBytes()),
			release(host), host.GetAccel(), seen(host, a.age))
	}
	return t
}

// release gives QEMU's version without the name of its package.
func release(host *godwitv1.Host) string {
	version, _, _ := strings.Cut(host.GetQemuVersion(), " ")
	return version
}

// hostState says both of a host that is cordoned and down.
func hostState(host *godwitv1.Host) string {
	if host.GetCordoned() && host.GetState() == "down" {
		return "down, cordoned"
	}
	return host.GetState()
}

// seen tells when a host was last heard of: as long as its agent is connected
// that is now.
func seen(host *godwitv1.Host, tell func(*timestamppb.Timestamp) string) string {
	if state := host.GetState(); state == "up" || state == "cordoned" {
		return "now"
	}
	return tell(host.GetSeen())
}

func (a *App) showHost(w io.Writer, host *godwitv1.Host) {
	s := sheet{w, a.style()}
	s.row("Name", host.GetName())
	s.row("State", s.style.state(hostState(host)))
	s.row("Address", host.GetAddress())
	s.row("Agent", host.GetAgentVersion())
	s.row("Seen", seen(host, a.moment))
	s.row("Version", number(host.GetVersion()))

	s.heading("Capacity")
	s.row("CPUs", fmt.Sprintf("%d of %d reserved", host.GetCpusReserved(), host.GetCpus()))
	s.row("Memory", size(host.GetMemoryReservedBytes())+" of "+size(host.GetMemoryBytes())+" reserved")

	s.heading("QEMU")
	s.row("Release", host.GetQemuVersion())
	s.row("Accelerator", host.GetAccel())
	aliases := host.GetMachineAliases()
	for i, alias := range slices.Sorted(maps.Keys(aliases)) {
		s.row(first(i, "Aliases"), alias+" is "+aliases[alias])
	}
	s.list("Machines", host.GetMachines())
	s.list("CPU models", host.GetCpuModels())
	s.networks(host.GetNetworks())
}

// networks writes what a host has of networks by itself.
func (s sheet) networks(networks *godwitv1.HostNetworks) {
	if networks == nil {
		return
	}
	s.heading("Networks")
	s.row("Underlay MTU", numberIf(networks.GetUnderlayMtu()))
	if len(networks.GetBridges()) == 0 {
		return
	}
	t := table{}
	t.add("BRIDGE", "MTU", "VLANS")
	for _, bridge := range networks.GetBridges() {
		vlans := "not filtered"
		if bridge.GetFiltersVlans() {
			vlans = "filtered"
		}
		t.add(bridge.GetName(), number(bridge.GetMtu()), vlans)
	}
	s.table(t)
}

// list writes values under one key, several on a line.
func (s sheet) list(key string, values []string) {
	const perLine = 4
	n := 0
	for line := range slices.Chunk(values, perLine) {
		text := strings.Join(line, ", ")
		fmt.Fprintf(s.w, "%-*s%s\n", keyWidth, first(n, key), text)
		n++
	}
}

// first gives the key for the first of several lines only.
func first(i int, key string) string {
	if i == 0 {
		return key
	}
	return ""
}
