package fleetlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/image"
)

// controlName is a host that only a server runs on, or a member of etcd, or both.
func controlName(i int) string { return numbered("control", i) }

// numbered gives a name to the first of several, and with a number to the next.
func numbered(name string, i int) string {
	if i == 0 {
		return name
	}
	return fmt.Sprintf("%s%d", name, i+1)
}

const (
	maxControls = 9 // servers, and members of etcd
	serverPort  = "7443"
	hostCPUs    = "8"
	hostMemory  = "8GiB"
	// askEvery is how often the server is asked whether something that it has
	// no stream for has come true.
	askEvery = 20 * time.Millisecond
	// startWithin bounds the start of the processes.
	startWithin = 60 * time.Second
)

// Host says how one host's agent runs.
type Host struct {
	Name string
	QEMU string   // program; the agent's default if empty
	Wrap []string // goes before the agent's command line, for example OwnMounts
}

// Config says what fleet to make. Fields that are zero get the default.
type Config struct {
	Name     string // of the lab; made up
	Binary   string // the godwit program
	Servers  int    // replicas of the server; 1. More need an Etcd
	Etcd     int    // members of an etcd outside of the servers; embedded if 0
	Image    image.Image
	Hosts    []Host   // h1, h2 and h3
	Client   string   // host that the client is plugged into; the last
	Networks int      // how many of Networks the fleet has; 1
	Wrap     []string // goes before a server's command line
	Boots    bool     // each host has boots of its own, and can Crash

	// Fabric are hosts that have the provider network, too; the client is at its switch.
	Fabric []string

	VolumeServers []string // names; each has a host of its own, without an agent

	EtcdProgram string // of internal/lab/etcd; for Etcd
}

// Network is a network of the fleet. The client's addresses in it end with 2.
type Network struct {
	Name    string
	Prefix  netip.Prefix
	Prefix6 netip.Prefix // none in some
}

// Networks are what a fleet may have.
var networks = [...]Network{
	{Name: "blue", Prefix: netip.MustParsePrefix("10.20.0.0/24")},
	{Name: "green", Prefix: netip.MustParsePrefix("10.30.0.0/24")},
}

// provider is the network of a Fabric.
var provider = Network{Name: "prod", Prefix: netip.MustParsePrefix("10.40.0.0/24"), Prefix6: netip.MustParsePrefix("fd40::/64")}

// Fleet is a running fleet.
type Fleet struct {
	Lab    *lab.Lab
	API    *client.Client // of the first server that answers
	Client *lab.Namespace // eth0 is in the first network, eth1 in the second

	config  Config
	etcds   []*Process // none if it is embedded
	servers []*Process
	apis    []*client.Client // of each server
	agents  map[string]*Process
	volumes map[string]*VolumeServer
	guests  atomic.Int32
}

func (c *Config) complete() {
	if len(c.Hosts) == 0 {
		c.Hosts = []Host{{Name: "h1"}, {Name: "h2"}, {Name: "h3"}}
	}
	if c.Client == "" {
		c.Client = c.Hosts[len(c.Hosts)-1].Name
	}
	if c.Networks == 0 {
		c.Networks = 1
	}
	if c.Servers == 0 {
		c.Servers = 1
	}
}

func (c *Config) check() error {
	problem := ""
	switch {
	case c.Networks < 1 || c.Networks > len(networks):
		problem = fmt.Sprintf("%d networks are not within 1..%d", c.Networks, len(networks))
	case c.Servers < 1 || c.Servers > maxControls:
		problem = fmt.Sprintf("%d servers are not within 1..%d", c.Servers, maxControls)
	case c.Etcd < 0 || c.Etcd > maxControls:
		problem = fmt.Sprintf("%d members of etcd are not within 0..%d", c.Etcd, maxControls)
	case c.Servers > 1 && c.Etcd == 0:
		problem = "several servers share an etcd outside of them"
	case (c.Etcd == 0) != (c.EtcdProgram == ""):
		problem = "Etcd and EtcdProgram go together"
	default:
		return nil
	}
	return fmt.Errorf("start a fleet: %s", problem)
}

// Start makes a fleet and waits until all its hosts are up. The caller closes
// it. Before Start the labs of owners that have died are removed.
func Start(ctx context.Context, config Config) (*Fleet, error) {
	config.complete()
	if err := config.check(); err != nil {
		return nil, err
	}
	var names []string
	for i := range max(config.Servers, config.Etcd) {
		names = append(names, controlName(i))
	}
	for _, host := range config.Hosts {
		names = append(names, host.Name)
	}
	names = append(names, config.VolumeServers...)
	l, err := lab.New(ctx, lab.Config{Name: config.Name, Hosts: names})
	if err != nil {
		return nil, err
	}
	f := &Fleet{Lab: l, config: config, agents: map[string]*Process{}, volumes: map[string]*VolumeServer{}}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	if err := f.start(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *Fleet) start(ctx context.Context) error {
	if err := os.Mkdir(f.logDir(), 0o755); err != nil {
		return err
	}
	if err := f.startServers(ctx); err != nil {
		return err
	}
	if len(f.config.Fabric) > 0 {
		if err := f.Lab.AddFabric(ctx, lab.DefaultMTU, f.config.Fabric...); err != nil {
			return err
		}
	}
	for _, host := range f.config.Hosts {
		if err := f.startAgent(ctx, host); err != nil {
			return err
		}
	}
	if err := f.AwaitHosts(ctx); err != nil {
		return err
	}
	if err := f.plugClient(ctx); err != nil {
		return err
	}
	for _, name := range f.config.VolumeServers {
		if err := f.startVolumeServer(ctx, name); err != nil {
			return err
		}
	}
	return f.makeNetworks(ctx)
}

func (f *Fleet) logDir() string { return filepath.Join(f.Lab.Dir(), "logs") }

// AgentDir is the folder of a host's agent.
func (f *Fleet) AgentDir(host string) string { return filepath.Join(f.Lab.Dir(), host) }

// Agent is the process of a host's agent, nil for an unknown host.
func (f *Fleet) Agent(host string) *Process { return f.agents[host] }

// VolumeServer is one of the fleet's, nil for an unknown name.
func (f *Fleet) VolumeServer(name string) *VolumeServer { return f.volumes[name] }

// Hosts are the names of the hosts that have an agent.
func (f *Fleet) Hosts() (names []string) {
	for _, host := range f.config.Hosts {
		names = append(names, host.Name)
	}
	return names
}

func (f *Fleet) startAgent(ctx context.Context, host Host) error {
	token, err := f.API.Host.CreateToken(ctx, &godwitv1.CreateTokenRequest{Host: host.Name})
	if err != nil {
		return err
	}
	home := f.Lab.Host(host.Name)
	var wrap []string
	if f.config.Boots {
		if err := f.boot(host.Name); err != nil {
			return err
		}
		wrap = f.ownBoot(host.Name)
	}
	args := append(slices.Concat(wrap, host.Wrap), f.config.Binary, "agent",
		"--server", f.serverURLs(),
		"--name", host.Name, "--address", home.Addr.String(), "--dir", f.AgentDir(host.Name),
		"--cpus", hostCPUs, "--memory", hostMemory)
	if host.QEMU != "" {
		args = append(args, "--qemu", host.QEMU)
	}
	p := &Process{
		name: "the agent of " + host.Name, home: home.Namespace, log: filepath.Join(f.logDir(), host.Name+".log"),
		env: []string{"GODWIT_TOKEN=" + token.GetToken()}, args: args,
	}
	f.agents[host.Name] = p
	return p.Start()
}

// AwaitHosts waits until the server knows every host as up.
func (f *Fleet) AwaitHosts(ctx context.Context) error {
	var processes []*Process
	if len(f.servers) == 1 {
		processes = append(processes, f.servers[0])
	}
	for _, name := range f.Hosts() {
		processes = append(processes, f.agents[name])
	}
	return f.await(ctx, "all hosts to be up", func(ctx context.Context) (bool, error) {
		up := 0
		for host, err := range f.API.Hosts(ctx) {
			if err != nil {
				return false, err
			}
			if host.GetState() == "up" {
				up++
			}
		}
		return up == len(f.config.Hosts), nil
	}, processes...)
}

// AwaitDown waits until the server knows a host as down, whose agent has ended.
func (f *Fleet) AwaitDown(ctx context.Context, host string) error {
	return f.await(ctx, host+" to be down", func(ctx context.Context) (bool, error) {
		answer, err := f.API.Host.Get(ctx, &godwitv1.GetHostRequest{Name: host})
		return answer.GetHost().GetState() == "down", err
	})
}

// await asks until something is true: the API has no stream for it. It fails
// as soon as one of the processes has ended.
func (f *Fleet) await(ctx context.Context, what string, ask func(context.Context) (bool, error), alive ...*Process) error {
	for {
		done, err := ask(ctx)
		if done {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		for _, process := range alive {
			select {
			case <-process.Exited():
				return process.died()
			default:
			}
		}
		select {
		case <-time.After(askEvery):
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
	}
}

// clientDevice is the client's end in the host that it is plugged into.
func clientDevice(i int) string { return fmt.Sprintf("gwcl%d", i) }

func clientMAC(i int) net.HardwareAddr { return net.HardwareAddr{0x02, 0, 0, 0xc1, 0, byte(i)} }

func (f *Fleet) plugClient(ctx context.Context) (err error) {
	var ports []lab.Port
	for i, network := range networks[:f.config.Networks] {
		ports = append(ports, lab.Port{
			Host: f.config.Client, Device: clientDevice(i), MAC: clientMAC(i),
			Addresses: network.addresses(2),
		})
	}
	if f.Client, err = f.Lab.AddClient("client", ports...); err != nil || len(f.config.Fabric) == 0 {
		return err
	}
	return f.Lab.JoinFabric(ctx, f.Client, "fabric", lab.Port{
		MAC: net.HardwareAddr{0x02, 0, 0, 0xc1, 1, 0}, Addresses: provider.addresses(2),
	})
}

// addresses gives the network's addresses that end with a number.
func (n Network) addresses(number byte) (all []netip.Prefix) {
	for _, prefix := range []netip.Prefix{n.Prefix, n.Prefix6} {
		if prefix.IsValid() {
			bytes := prefix.Addr().AsSlice()
			bytes[len(bytes)-1] = number
			address, _ := netip.AddrFromSlice(bytes)
			all = append(all, netip.PrefixFrom(address, prefix.Bits()))
		}
	}
	return all
}

func (f *Fleet) makeNetworks(ctx context.Context) error {
	for i, network := range networks[:f.config.Networks] {
		_, err := f.API.Network.Create(ctx, &godwitv1.CreateNetworkRequest{
			Network: &godwitv1.Network{Name: network.Name, Subnets: []string{network.Prefix.String()}},
		})
		if err != nil {
			return err
		}
		_, err = f.API.Network.Attach(ctx, &godwitv1.AttachEndpointRequest{
			Network: network.Name,
			Endpoint: &godwitv1.Endpoint{
				Name: "client", Host: f.config.Client, Device: clientDevice(i),
				Mac: clientMAC(i).String(), Ips: []string{network.addresses(2)[0].Addr().String()},
			},
		})
		if err != nil {
			return err
		}
	}
	if len(f.config.Fabric) == 0 {
		return nil
	}
	_, err := f.API.Network.Create(ctx, &godwitv1.CreateNetworkRequest{Network: &godwitv1.Network{
		Name: provider.Name, Bridge: lab.HostBridge, Subnets: []string{provider.Prefix.String(), provider.Prefix6.String()},
	}})
	return err
}

// Keep leaves the fleet running when this process ends, until lab.Remove.
// Close then only lets go of it.
func (f *Fleet) Keep() error { return f.Lab.Keep() }

// Close ends every process of the fleet, VMs too, and removes the lab.
func (f *Fleet) Close() error {
	for _, api := range f.apis {
		api.Close()
	}
	for _, volumes := range f.volumes {
		volumes.API.Close()
	}
	return f.Lab.Close()
}
