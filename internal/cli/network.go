package cli

import (
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

func newNetworkCommand(app *App) *cobra.Command {
	return group("network", "Create networks and attach interfaces to them",
		`A network has ports of VMs in it. An overlay is between the hosts; interfaces of
hosts can be in it too: a gateway, a bare-metal machine, a client. A provider
network is one that you have: a bridge on each host, or a VLAN of it.`,
		"  godwit network create blue --subnet 10.20.0.0/24\n  godwit network create prod --bridge br0 --vlan 100",
		newNetworkCreate(app), newNetworkList(app), newNetworkShow(app),
		newNetworkDelete(app), newNetworkAttach(app), newNetworkDetach(app))
}

func newNetworkCreate(app *App) *cobra.Command {
	network := &godwitv1.Network{}
	var request string
	cmd := app.callCommand("create NETWORK", "Create an overlay or a provider network",
		`Create makes a network that VMs can have ports in. It is an overlay between the
hosts, for which the server chooses a VXLAN network identifier unless --vni
gives one. With --bridge it is a provider network: each port joins the bridge of
that name on its VM's host, with --vlan in that VLAN of it.

The bridge is yours to make. It must exist on each host that is to run VMs with
ports in the network, be connected to the same network on all of them, have at
least its MTU and, for --vlan, filter VLANs. Other hosts are refused when such a
VM starts, is moved or gets such a port while it runs. godwit host show lists a
host's bridges.`,
		`  godwit network create blue --subnet 10.20.0.0/24
  godwit network create red --vni 4711 --mtu 8950
  godwit network create prod --bridge br0 --vlan 100`,
		nil,
		func(ctx context.Context, c *client.Client, name string) error {
			network.Name = name
			response, err := c.Network.Create(ctx, &godwitv1.CreateNetworkRequest{Network: network, RequestId: request})
			if err != nil {
				return named("create", "network "+name, err)
			}
			created := response.GetNetwork()
			return app.printOne(created, func(w io.Writer) {
				fmt.Fprintf(w, "network %s created: %s, MTU %d\n", created.GetName(), segment(created), created.GetMtu())
			})
		})
	flags := cmd.Flags()
	flags.Uint32Var(&network.Vni, "vni", 0, "VXLAN network `identifier` (default: the server chooses one)")
	flags.StringVar(&network.Bridge, "bridge", "", "make a provider network on the `bridge` of this name")
	flags.Uint32Var(&network.Vlan, "vlan", 0, "`VLAN` of that bridge, 1 to 4094 (default: none)")
	flags.Int32Var(&network.Mtu, "mtu", 0, "largest packet in `bytes` (default: 1500)")
	flags.StringSliceVar(&network.Subnets, "subnet", nil, "`prefix` of the addresses in it; can be given again")
	requestFlag(cmd, &request)
	app.completeFlag(cmd, "bridge", bridgeNames)
	return cmd
}

// segment says what carries the frames of a network.
func segment(network *godwitv1.Network) string {
	return fleet.Network{VNI: network.GetVni(), Bridge: network.GetBridge(), VLAN: uint16(network.GetVlan())}.Segment()
}

func newNetworkList(app *App) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List networks",
		Long: `List shows every network with its VXLAN network identifier, or its bridge and
VLAN, its subnets and attached interfaces.`,
		Example: "  godwit network list",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				networks, err := collect(c.Networks(ctx))
				if err != nil {
					return named("list", "networks", err)
				}
				return printList(app, "networks", networks, app.networkTable)
			})
		},
	}
	addTimeout(cmd, &limit)
	return cmd
}

func newNetworkShow(app *App) *cobra.Command {
	return app.callCommand("show NETWORK", "Show one network",
		"Show prints a network and the interfaces of hosts that are attached to it.",
		"  godwit network show blue", networkNames,
		func(ctx context.Context, c *client.Client, name string) error {
			response, err := c.Network.Get(ctx, &godwitv1.GetNetworkRequest{Name: name})
			if err != nil {
				return named("show", "network "+name, err)
			}
			network := response.GetNetwork()
			return app.printOne(network, func(w io.Writer) { app.showNetwork(w, network) })
		})
}

func newNetworkDelete(app *App) *cobra.Command {
	var version int64
	cmd := app.callCommand("delete NETWORK", "Delete a network that no VM uses",
		"Delete removes a network. It is refused while a VM has a port in it.",
		"  godwit network delete blue", networkNames,
		func(ctx context.Context, c *client.Client, name string) error {
			if _, err := c.Network.Delete(ctx, &godwitv1.DeleteNetworkRequest{Name: name, Version: version}); err != nil {
				return named("delete", "network "+name, err)
			}
			return app.printDeleted("network", name)
		})
	versionFlag(cmd, &version)
	return cmd
}

func newNetworkAttach(app *App) *cobra.Command {
	endpoint := &godwitv1.Endpoint{}
	var version int64
	var request string
	cmd := app.callCommand("attach NETWORK", "Make an interface of a host part of an overlay",
		`Attach lets an interface that exists on a host take part in an overlay, under a
name of its own and with the addresses given. To be in a provider network, an
interface joins the bridge itself.`,
		"  godwit network attach blue --name gateway --host host-a --device eth1 \\\n"+
			"      --mac 52:54:00:00:00:01 --ip 10.20.0.1", networkNames,
		func(ctx context.Context, c *client.Client, network string) error {
			response, err := c.Network.Attach(ctx, &godwitv1.AttachEndpointRequest{
				Network: network, Endpoint: endpoint, Version: version, RequestId: request,
			})
			if err != nil {
				return named("attach", endpoint.GetName()+" to network "+network, err)
			}
			return app.printOne(response.GetNetwork(), func(w io.Writer) {
				fmt.Fprintf(w, "%s of host %s is attached to network %s as %s\n",
					endpoint.GetDevice(), endpoint.GetHost(), network, endpoint.GetName())
			})
		})
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return demand(cmd, "name", "host", "device", "mac") }
	flags := cmd.Flags()
	flags.StringVar(&endpoint.Name, "name", "", "`name` of the endpoint in the network")
	flags.StringVar(&endpoint.Host, "host", "", "`host` that has the interface")
	flags.StringVar(&endpoint.Device, "device", "", "the `interface` on that host")
	flags.StringVar(&endpoint.Mac, "mac", "", "its MAC `address`")
	flags.StringSliceVar(&endpoint.Ips, "ip", nil, "an IP `address` of it; can be given again")
	versionFlag(cmd, &version)
	requestFlag(cmd, &request)
	app.completeFlag(cmd, "host", hostNames)
	return cmd
}

func newNetworkDetach(app *App) *cobra.Command {
	var limit time.Duration
	var version int64
	cmd := &cobra.Command{
		Use:               "detach NETWORK NAME",
		Short:             "Take an interface of a host out of a network",
		Long:              "Detach ends what attach began; the interface itself stays on its host.",
		Example:           "  godwit network detach blue gateway",
		Args:              exactly("NETWORK", "NAME"),
		ValidArgsFunction: app.completeFirst(networkNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return app.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				response, err := c.Network.Detach(ctx, &godwitv1.DetachEndpointRequest{Network: args[0], Endpoint: args[1], Version: version})
				if err != nil {
					return named("detach", args[1]+" from network "+args[0], err)
				}
				return app.printOne(response.GetNetwork(), func(w io.Writer) {
					fmt.Fprintf(w, "%s is detached from network %s\n", args[1], args[0])
				})
			})
		},
	}
	versionFlag(cmd, &version)
	addTimeout(cmd, &limit)
	return cmd
}

func (a *App) networkTable(networks []*godwitv1.Network) table {
	t := table{style: a.style()}
	t.add("NAME", "VNI", "BRIDGE", "VLAN", "MTU", "SUBNETS", "ENDPOINTS")
	for _, network := range networks {
		var endpoints []string
		for _, endpoint := range network.GetEndpoints() {
			endpoints = append(endpoints, endpoint.GetName())
		}
		t.add(network.GetName(), numberIf(network.GetVni()), network.GetBridge(), numberIf(network.GetVlan()), number(network.GetMtu()),
			strings.Join(network.GetSubnets(), ","), strings.Join(endpoints, ","))
	}
	return t
}

func (a *App) showNetwork(w io.Writer, network *godwitv1.Network) {
	s := sheet{w, a.style()}
	s.row("Name", network.GetName())
	s.row("VNI", numberIf(network.GetVni()))
	s.row("Bridge", network.GetBridge())
	s.row("VLAN", numberIf(network.GetVlan()))
	s.row("MTU", number(network.GetMtu()))
	s.row("Subnets", strings.Join(network.GetSubnets(), ", "))
	s.row("Version", number(network.GetVersion()))
	if len(network.GetEndpoints()) == 0 {
		return
	}
	s.heading("Endpoints")
	t := table{}
	t.add("NAME", "HOST", "DEVICE", "MAC", "IP")
	for _, endpoint := range network.GetEndpoints() {
		t.add(endpoint.GetName(), endpoint.GetHost(), endpoint.GetDevice(), endpoint.GetMac(),
			strings.Join(endpoint.GetIps(), ","))
	}
	s.table(t)
}
