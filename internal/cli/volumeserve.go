package cli

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"godwit.dev/godwit/api/client"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volume"
	"godwit.dev/godwit/internal/volumeserver"
)

const volumeServeHelp = `Serve runs a volume server: it serves the volumes of a folder by NBD, over TLS,
to the hosts of the fleet. It may be killed and started again at any time: what
was flushed is on the disk.

A host writes to a volume only while it holds the lease of its VM's epoch. When
a VM has moved, what the older instance may still send is refused, whatever
became of it. Administrators use volumes that no host holds.

The first start needs a token, which "godwit volume token NAME" makes. With it
the volume server gets a certificate, which it renews by itself from then on.

It tells the fleet's server the address at which hosts reach it, and at which
ports; "godwit volume server list" shows what the fleet knows.`

// volumeServeFlags are the flags of godwit volume serve.
type volumeServeFlags struct {
	name        string
	token       string
	dir         string
	listen      string
	control     string
	run         string
	address     string
	connections int
	level       string
}

func newVolumeServe(app *App) *cobra.Command {
	flags := volumeServeFlags{connections: volume.DefaultMaxConnections}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a volume server",
		Long:  volumeServeHelp,
		Example: `  godwit volume serve --server https://control:7443 --name v1 --token gwt_…
  godwit volume serve --server https://control:7443 --name v1 --dir /srv/volumes`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return app.runVolumeServer(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	hostname, _ := os.Hostname()
	f.StringVar(&flags.name, "name", hostname, "`name` of this volume server")
	f.StringVar(&flags.token, "token", app.env("GODWIT_TOKEN", ""), "one-time `token` of the first start (GODWIT_TOKEN)")
	f.StringVar(&flags.dir, "dir", "/var/lib/godwit/volume", "`folder` of the volumes and the certificate")
	f.StringVar(&flags.listen, "listen", volumeserver.DefaultListen, "`address` for NBD")
	f.StringVar(&flags.control, "control", volumeserver.DefaultControl, "`address` for the fleet's server and agents")
	f.StringVar(&flags.run, "run", volumeserver.DefaultRun, "`folder` of the sockets for this machine")
	f.StringVar(&flags.address, "address", "", "IP `address` at which hosts reach it (default: that from which it reaches the fleet's server)")
	intFlag(cmd, &flags.connections, "max-connections", 1, 1<<16, "how many NBD clients there may be at once")
	addLogLevel(cmd, &flags.level)
	return cmd
}

// clientThreads is how many threads may run besides those that Go has for the
// processors. One that waits in the kernel for its client counts as running: with
// fewer, one that comes back from there would wait for the turn of others.
const clientThreads = 8

func (a *App) runVolumeServer(ctx context.Context, flags volumeServeFlags) error {
	config, err := a.volumeServerConfig(ctx, flags)
	if err != nil {
		return err
	}
	s, err := volumeserver.New(ctx, config)
	if err != nil {
		return err
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + clientThreads)
	nbd, control := s.Addresses()
	config.Log.Info("serving volumes", "name", flags.name, "nbd", nbd.String(), "control", control.String(), "run", flags.run)
	// The keeper ends with an error of the context only.
	group, ctx := errgroup.WithContext(ctx)
	renewing, stop := context.WithCancel(ctx)
	group.Go(func() error { _ = config.Keeper.Run(renewing); return nil })
	group.Go(func() error { defer stop(); return s.Run(ctx) })
	return group.Wait()
}

func (a *App) volumeServerConfig(ctx context.Context, flags volumeServeFlags) (config volumeserver.Config, err error) {
	if config.Log, err = a.logger(flags.level); err != nil {
		return config, err
	}
	config.Dir, config.Listen, config.Control, config.Run = flags.dir, flags.listen, flags.control, flags.run
	config.MaxConnections = flags.connections
	if err := fleet.CheckName(flags.name); err != nil {
		return config, invalidFlag("name", err.Error())
	}
	if err := a.checkServerForMembers("volume servers"); err != nil {
		return config, err
	}
	if err := os.MkdirAll(flags.dir, 0o700); err != nil {
		return config, badFolder("dir", flags.dir, err)
	}
	config.Version, _ = build()
	if config.Address, err = a.volumeAddress(ctx, flags); err != nil {
		return config, err
	}
	member := pki.Identity{Kind: pki.Volume, Name: flags.name}
	config.Keeper, err = a.memberIdentity(ctx, member, filepath.Join(flags.dir, "certificate"), flags.token, config.Log)
	if err != nil {
		return config, err
	}
	c, err := client.Dial(client.Config{Server: a.server.Server, TLS: config.Keeper.ClientConfig(pki.Expect{Kind: pki.Server})})
	if err == nil {
		config.Fleet = c.VolumeServers
	}
	return config, err
}

// volumeAddress gives where hosts reach a volume server: what a flag says, or from
// where this machine reaches the fleet's server.
func (a *App) volumeAddress(ctx context.Context, flags volumeServeFlags) (netip.Addr, error) {
	if flags.address != "" {
		return hostAddress(flags.address)
	}
	if listen, err := netip.ParseAddrPort(flags.listen); err == nil && !listen.Addr().IsUnspecified() {
		return listen.Addr(), nil
	}
	for _, server := range client.Servers(a.server.Server) {
		to, err := url.Parse(server)
		if err != nil {
			continue // whoever calls it says what is wrong
		}
		// UDP: nothing is sent, only the way is looked up.
		conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(to.Hostname(), cmp.Or(to.Port(), client.DefaultPort)))
		if err != nil {
			continue
		}
		own := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		return own, conn.Close()
	}
	return netip.Addr{}, &fleet.Error{
		Code: fleet.Invalid, Op: "find own address", Cause: "there is no way from here to the fleet's server now",
		Hint: "give the IP address at which hosts reach this volume server, such as --address 10.0.0.31",
	}
}
