package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/server"
	"godwit.dev/godwit/internal/store"
)

const serverHelp = `Server runs the control plane: it keeps the fleet's records, chooses hosts,
and carries migrations on. Stopping it stops nothing else: VMs run on, and
migrations go on when it is back.

Records are kept in an etcd that is part of the server, in the data folder, or
with --etcd in a cluster of your own. At its first start the server makes the
fleet's certificate authority and keeps its key among the records: a cluster of
your own must let in nobody else who is not to rule the fleet.

Any number of servers may share such a cluster. One of them leads, another takes
over when it ends, and clients may ask any of them.

Records of migrations that are over are kept for a while, and deleted sooner,
the oldest first, if they take too much room. With --export-migrations each is
first appended to a file, which may be renamed at any time.

Whoever may open the server's socket may do everything; a certificate for
administrators of other machines is in the folder "admin" of the data folder.`

// serverFlags are the flags of godwit server.
type serverFlags struct {
	data     string
	listen   string
	socket   string
	names    []string
	etcd     []string
	etcdTLS  store.TLSFiles
	insecure bool
	url      string
	keepFor  time.Duration
	keepSize fleet.Bytes
	export   string
	level    string
}

func newServerCommand(app *App) *cobra.Command {
	flags := serverFlags{keepFor: server.DefaultKeepFor, keepSize: server.DefaultKeepSize}
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane",
		Long:  serverHelp,
		Example: `  godwit server --name control.example.com
  godwit server --etcd https://10.0.0.1:2379,https://10.0.0.2:2379,https://10.0.0.3:2379 \
    --etcd-ca ca.pem --etcd-cert godwit.pem --etcd-key godwit-key.pem`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkNoneEmpty(cmd); err != nil {
				return err
			}
			if err := flags.check(cmd.Flags().Changed("etcd")); err != nil {
				return err
			}
			return app.runServer(cmd.Context(), flags)
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.data, "data", defaultServerData, "`folder` of the records and certificates")
	f.StringVar(&flags.listen, "listen", server.DefaultListen, "`address` for agents and remote clients")
	f.StringVar(&flags.socket, "socket", server.DefaultSocket, "`path` of the socket for clients on this machine")
	f.StringSliceVar(&flags.names, "name", nil, "DNS `name` or address in the server's certificate; may be repeated")
	f.StringVar(&flags.url, "advertise", "", "`URL` at which agents and other servers reach this one (default: made of --listen and the first --name)")
	f.StringSliceVar(&flags.etcd, "etcd", nil, "`URLs` of an etcd cluster to use instead of the built-in one")
	f.StringVar(&flags.etcdTLS.CA, "etcd-ca", "", "`file` with the authority of that cluster (default: the system's)")
	f.StringVar(&flags.etcdTLS.Cert, "etcd-cert", "", "`file` with the certificate to show to that cluster")
	f.StringVar(&flags.etcdTLS.Key, "etcd-key", "", "`file` with the key of --etcd-cert")
	f.BoolVar(&flags.insecure, "etcd-insecure", false, "allow http:// to other machines: whoever listens on the way gets the fleet's keys")
	durationFlag(cmd, &flags.keepFor, "keep-migrations-for", leastKeepFor, mostKeepFor, "how long the records of migrations that are over are kept")
	bytesFlag(cmd, &flags.keepSize, "keep-migrations-size", leastKeepSize, mostKeepSize, "what they may take before the oldest are deleted")
	f.StringVar(&flags.export, "export-migrations", "", "`file` that gets their records as JSON lines, before they are deleted")
	addLogLevel(cmd, &flags.level)
	cmd.AddCommand(newServerChildren(app)...)
	return cmd
}

const defaultServerData = "/var/lib/godwit/server"

// Bounds of what is kept: enough to look at what was, and no more than half of
// what the store may hold.
const (
	leastKeepFor  = time.Hour
	mostKeepFor   = 10 * 365 * 24 * time.Hour
	leastKeepSize = fleet.MiB
	mostKeepSize  = store.DefaultQuota / 2
)

// check finds what is wrong with the flags before anything is opened or made.
// etcdGiven tells an --etcd that came out empty, as from an unset variable,
// from none: it must not become an embedded store, and so a fleet of its own.
func (f *serverFlags) check(etcdGiven bool) error {
	if err := checkListen(f.listen); err != nil {
		return err
	}
	if u, err := url.Parse(f.url); f.url != "" && (err != nil || u.Scheme != "https" || u.Port() == "" || u.Path != "") {
		return invalidFlag("advertise", "it is not of the form https://HOST:PORT")
	}
	tlsGiven := f.etcdTLS != store.TLSFiles{}
	switch {
	case len(f.socket) > maxSocketPath:
		return invalidFlag("socket", fmt.Sprintf("the path has %d bytes; it may have %d", len(f.socket), maxSocketPath))
	case etcdGiven && len(f.etcd) == 0:
		return invalidFlag("etcd", "it is empty; name the members as https://HOST:2379, or leave the flag out")
	case !etcdGiven && (tlsGiven || f.insecure):
		return invalidFlag("etcd", "it is missing; --etcd-ca, --etcd-cert, --etcd-key and --etcd-insecure are for an external cluster")
	case (f.etcdTLS.Cert == "") != (f.etcdTLS.Key == ""):
		return invalidFlag("etcd-cert", "a certificate and its key go together; give both --etcd-cert and --etcd-key")
	}
	return nil
}

// maxSocketPath is what the kernel takes (unix(7)), less what the server adds
// while it makes the socket.
const maxSocketPath = 107 - len(".new")

// checkListen sees to the form of the address. Whether it can be listened on
// shows when it is.
func checkListen(address string) error {
	problem := ""
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		problem = "is not HOST:PORT"
	} else if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		problem = "has no port within 0..65535"
	} else if strings.ContainsAny(host, " /@") {
		problem = "names no host"
	}
	if problem == "" {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Invalid, Op: "read --listen", Cause: fmt.Sprintf("%q %s", address, problem),
		Hint: "give an address of this machine and a port, for example " + server.DefaultListen,
	}
}

// storeConfig says where the records are.
func (f *serverFlags) storeConfig(log *slog.Logger) (config store.Config, err error) {
	config.Logger = log.With("part", "store")
	if len(f.etcd) == 0 {
		config.Dir = filepath.Join(f.data, "etcd")
		return config, nil
	}
	config.Endpoints, config.Insecure = f.etcd, f.insecure
	if f.etcdTLS != (store.TLSFiles{}) {
		config.TLS, err = f.etcdTLS.Load()
	}
	return config, err
}

func (a *App) runServer(ctx context.Context, flags serverFlags) (err error) {
	log, err := a.logger(flags.level)
	if err != nil {
		return err
	}
	config, err := flags.storeConfig(log)
	if err != nil {
		return err
	}
	records, err := store.Open(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	s, err := server.New(ctx, server.Config{
		Store: records, DataDir: flags.data, Logger: log, Listen: flags.listen, Socket: flags.socket, Names: flags.names,
		Replicas: !records.Embedded(), Advertise: flags.url,
		KeepFor: flags.keepFor, KeepSize: flags.keepSize, Export: flags.export,
	})
	if err != nil {
		return err
	}
	log.Info("serving", "listen", s.Addr(), "socket", flags.socket)
	return s.Run(ctx)
}

func addLogLevel(cmd *cobra.Command, level *string) {
	cmd.Flags().StringVar(level, "log", "info", "least `level` to log: debug, info, warn or error")
}

// logger writes to standard error, one line an event.
func (a *App) logger(level string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "read --log", Cause: level + " is not a level", Hint: "use debug, info, warn or error"}
	}
	return slog.New(slog.NewTextHandler(a.Err, &slog.HandlerOptions{Level: least})), nil
}
