package cli

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"

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
fleet's certificate authority. Whoever may open its socket may do everything; a
certificate for administrators of other machines is in the folder "admin" of
the data folder.`

// serverFlags are the flags of godwit server.
type serverFlags struct {
	data   string
	listen string
	socket string
	names  []string
	etcd   []string
	level  string
}

func newServerCommand(app *App) *cobra.Command {
	var flags serverFlags
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run the control plane",
		Long:  serverHelp,
		Example: `  godwit server --name control.example.com
  godwit server --etcd http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error { return app.runServer(cmd.Context(), flags) },
	}
	f := cmd.Flags()
	f.StringVar(&flags.data, "data", "/var/lib/godwit/server", "`folder` of the records and certificates")
	f.StringVar(&flags.listen, "listen", server.DefaultListen, "`address` for agents and remote clients")
	f.StringVar(&flags.socket, "socket", server.DefaultSocket, "`path` of the socket for clients on this machine")
	f.StringSliceVar(&flags.names, "name", nil, "DNS `name` or address in the server's certificate; may be repeated")
	f.StringSliceVar(&flags.etcd, "etcd", nil, "`URLs` of an etcd cluster to use instead of the built-in one")
	addLogLevel(cmd, &flags.level)
	return cmd
}

func (a *App) runServer(ctx context.Context, flags serverFlags) (err error) {
	log, err := a.logger(flags.level)
	if err != nil {
		return err
	}
	config := store.Config{Endpoints: flags.etcd, Logger: log.With("part", "store")}
	if len(flags.etcd) == 0 {
		config.Dir = filepath.Join(flags.data, "etcd")
	}
	records, err := store.Open(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	s, err := server.New(ctx, server.Config{
		Store: records, DataDir: flags.data, Logger: log, Listen: flags.listen, Socket: flags.socket, Names: flags.names,
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
