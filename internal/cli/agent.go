package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	"godwit.dev/godwit/internal/agent"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/supervise"
)

const agentHelp = `Agent runs on every host that is to run VMs, as root. It needs QEMU 7.2 or
newer and a kernel with eBPF, tap and VXLAN devices. VMs outlive it: stopping or
restarting an agent changes nothing for them. One that is killed or hangs is
started again by its monitor, which is the process that you start.

The first start needs a token, which "godwit host token NAME" makes. With it the
agent gets a certificate, which it renews by itself from then on.

With several servers, --server names them all, and the agent finds the one that
leads.`

// agentFlags are the flags of godwit agent.
type agentFlags struct {
	name    string
	address string
	port    int // for other agents
	token   string
	dir     string
	disks   string
	keep    time.Duration
	qemu    string
	cpus    int
	memory  fleet.Bytes
	level   string
}

// Bounds of what a host may give away, far beyond any host.
const (
	maxKeepDisks  = 10000 * time.Hour
	maxHostCPUs   = 1 << 16
	minHostMemory = 16 * fleet.MiB // the smallest VM
	maxHostMemory = fleet.Bytes(1) << 50
)

func newAgentCommand(app *App) *cobra.Command {
	flags := agentFlags{keep: agent.DefaultKeepDisks}
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this host",
		Long:  agentHelp,
		Example: `  godwit agent --server https://control:7443 --address 10.0.0.21 --token gwt_…
  godwit agent --server https://c1:7443,https://c2:7443,https://c3:7443 --address 10.0.0.21`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return app.runAgent(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	hostname, _ := os.Hostname()
	f.StringVar(&flags.name, "name", hostname, "`name` of this host")
	f.StringVar(&flags.address, "address", "", "`address` at which other hosts reach this one (required)")
	flags.port = agent.DefaultPeerPort
	intFlag(cmd, &flags.port, "peer-port", 1, 65535, "TCP port at the address for the agents of other hosts")
	f.StringVar(&flags.token, "token", app.env("GODWIT_TOKEN", ""), "one-time `token` of the first start (GODWIT_TOKEN)")
	f.StringVar(&flags.dir, "dir", "/var/lib/godwit/agent", "`folder` of certificates and instances")
	f.StringVar(&flags.disks, "disks", "", "`folder` of the VMs' local disks (default: disks in --dir)")
	durationFlag(cmd, &flags.keep, "keep-disks", 0, maxKeepDisks, "how long local disks stay here of a VM that has moved")
	f.StringVar(&flags.qemu, "qemu", "qemu-system-x86_64", "QEMU's `program`")
	flags.cpus = 4 * runtime.NumCPU()
	intFlag(cmd, &flags.cpus, "cpus", 1, maxHostCPUs, "vCPUs that all VMs together may have")
	bytesFlag(cmd, &flags.memory, "memory", minHostMemory, maxHostMemory, "memory that all VMs together may have, such as 64GiB (default: nine tenths of the host's)")
	addLogLevel(cmd, &flags.level)
	return cmd
}

func (a *App) runAgent(ctx context.Context, flags agentFlags) error {
	link, supervised, err := supervise.Join()
	if err != nil {
		return err
	}
	if !supervised && a.Program != nil {
		return a.superviseAgent(ctx, flags)
	}
	var kept agent.Descriptors
	if supervised && link.Keeper() != nil {
		kept = link.Keeper()
	}
	one, err := a.newAgent(ctx, flags, kept)
	if err != nil {
		return err
	}
	if supervised {
		if err := link.Ready(); err != nil {
			return err
		}
	}
	return one.Run(ctx)
}

// superviseAgent has the agent run in another process, again and again.
func (a *App) superviseAgent(ctx context.Context, flags agentFlags) error {
	log, err := a.logger(flags.level)
	if err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	err = supervise.Run(ctx, supervise.Config{Name: "the agent", Log: log.With("part", "monitor"), Command: func() *exec.Cmd {
		return &exec.Cmd{Path: program, Args: a.Program, Stdin: a.In, Stdout: a.Out, Stderr: a.Err}
	}})
	if ended, ok := errors.AsType[*exec.ExitError](err); ok && ended.Exited() {
		return &toldError{ended.ExitCode()}
	}
	return err
}

// newAgent gives an agent that has taken over what an earlier one left.
func (a *App) newAgent(ctx context.Context, flags agentFlags, kept agent.Descriptors) (*agent.Agent, error) {
	config, err := a.agentConfig(ctx, flags)
	if err != nil && os.Geteuid() != 0 {
		return nil, hinted(err, "an agent runs as root")
	}
	if err != nil {
		return nil, err
	}
	config.Descriptors = kept
	one, err := agent.New(ctx, config)
	if err != nil {
		return nil, err
	}
	config.Log.Info("agent of "+string(config.Name), "address", config.Address, "qemu", one.QEMUVersion())
	return one, nil
}

// bootIDFile names the host's present boot (random(4)).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

func (a *App) agentConfig(ctx context.Context, flags agentFlags) (config agent.Config, err error) {
	if config.Log, err = a.logger(flags.level); err != nil {
		return config, err
	}
	config.Name, config.Dir, config.QEMU, config.CPUs = fleet.HostName(flags.name), flags.dir, flags.qemu, flags.cpus
	config.DisksDir, config.KeepDisks = flags.disks, flags.keep
	config.Version, _ = build()
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		return config, fmt.Errorf("read the boot id: %w", err)
	}
	config.BootID = strings.TrimSpace(string(boot))
	if err := fleet.CheckName(flags.name); err != nil {
		return config, invalidFlag("name", err.Error())
	}
	if err := a.checkServerForMembers("agents"); err != nil {
		return config, err
	}
	if config.Address, err = hostAddress(flags.address); err != nil {
		return config, err
	}
	if err := os.MkdirAll(flags.dir, 0o700); err != nil {
		return config, badFolder("dir", flags.dir, err)
	}
	if config.Memory, err = hostMemory(flags.memory); err != nil {
		return config, err
	}
	host := pki.Identity{Kind: pki.Host, Name: flags.name}
	if config.Keeper, err = a.memberIdentity(ctx, host, filepath.Join(flags.dir, "certificate"), flags.token, config.Log); err != nil {
		return config, err
	}
	if err := a.agentServers(&config); err != nil {
		return config, err
	}
	if config.Peers.Listener, err = listenForPeers(ctx, netip.AddrPortFrom(config.Address, uint16(flags.port))); err != nil {
		return config, err
	}
	config.Network, err = network.Open(network.Config{Underlay: config.Address})
	return config, err
}

// listenForPeers opens the agent's port for other hosts.
func listenForPeers(ctx context.Context, address netip.AddrPort) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address.String())
	if err != nil {
		return nil, &fleet.Error{
			Code: fleet.Failed, Op: "listen for other hosts", Subject: address.String(), Err: err,
			Hint: "stop what uses the port, or give another one: --peer-port",
		}
	}
	return listener, nil
}

// hostAddress reads the flag, which has no default: a host may have several
// addresses, and only its operator knows which network is private.
func hostAddress(flag string) (netip.Addr, error) {
	address, err := netip.ParseAddr(flag)
	problem := ""
	switch {
	case flag == "":
		problem = "it is missing"
	case err != nil:
		problem = fmt.Sprintf("%q is not an IP address", flag)
	case address.IsUnspecified() || address.IsMulticast():
		problem = flag + " is not the address of one host"
	default:
		return address, checkOwn(address)
	}
	return address, &fleet.Error{
		Code: fleet.Invalid, Op: "read --address", Cause: problem,
		Hint: "give the IP address at which other hosts reach this one, such as --address 10.0.0.21",
	}
}

// checkOwn demands an address of this host: tunnels begin at it.
func checkOwn(address netip.Addr) error {
	own, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list the addresses of this host: %w", err)
	}
	var others []string
	for _, one := range own {
		prefix, err := netip.ParsePrefix(one.String())
		switch {
		case err != nil:
			continue
		case prefix.Addr() == address.WithZone(""):
			return nil
		case prefix.Addr().IsGlobalUnicast():
			others = append(others, prefix.Addr().String())
		}
	}
	return &fleet.Error{
		Code: fleet.Invalid, Op: "read --address", Cause: "this host does not have the address " + address.String(),
		Hint: "it has " + cmp.Or(strings.Join(others, ", "), "none but loopback") + ": give the one at which other hosts reach it",
	}
}

// badFolder says why a folder that a flag names cannot be used.
func badFolder(flag, folder string, err error) error {
	if named, ok := errors.AsType[*fs.PathError](err); ok {
		err = named.Err // the folder is the subject already
	}
	return &fleet.Error{
		Code: fleet.Invalid, Op: "use folder", Subject: folder, Err: err,
		Hint: "give one that can be written to: --" + flag,
	}
}

// agentServers gives the servers that an agent begins with, each a client that
// shows the host's certificate.
func (a *App) agentServers(config *agent.Config) error {
	config.Dial = func(url string) (*client.Client, error) {
		return client.Dial(client.Config{
			Server: url, TLS: config.Keeper.ClientConfig(pki.Expect{Kind: pki.Server}), DialTimeout: agentDial,
		})
	}
	for _, url := range client.Servers(a.server.Server) {
		c, err := config.Dial(url)
		if err != nil {
			return err
		}
		config.Servers = append(config.Servers, agent.Server{URL: url, Client: c})
	}
	return nil
}

// agentDial bounds an agent's connecting to a server: there may be another one.
const agentDial = 2 * time.Second

// hostMemory reads the flag, or takes nine tenths of what the host has.
func hostMemory(flag fleet.Bytes) (fleet.Bytes, error) {
	if flag != 0 {
		return flag, nil
	}
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read the host's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		var kib fleet.Bytes
		if _, err := fmt.Sscanf(line, "MemTotal: %d kB", &kib); err == nil {
			return kib * fleet.KiB / 10 * 9, nil
		}
	}
	return 0, invalidFlag("memory", "the host's memory can't be read: give it")
}
