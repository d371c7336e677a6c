package volumeserver

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volume"
	"godwit.dev/godwit/internal/wire"
)

// Where a volume server listens unless told otherwise.
const (
	DefaultListen  = ":10809" // NBD's port
	DefaultControl = ":7445"
	DefaultRun     = "/run/godwit-volume" // folder of the sockets
	DefaultSocket  = "unix://" + DefaultRun + "/" + controlSocket
)

const (
	nbdSocket     = "nbd.sock"
	controlSocket = "volume.sock"

	headerWithin = 5 * time.Second
	messageMax   = 256 << 10 // bytes
)

// Config says what is served and where.
type Config struct {
	Dir            string      // of the volumes
	Keeper         *pki.Keeper // of this volume server's certificate
	Listen         string      // address for NBD
	Control        string      // address for VolumeService
	Run            string      // folder of the sockets
	MaxConnections int         // 0 for the default
	Log            *slog.Logger

	// Fleet is told that hosts reach this server at Address; nil tells nobody.
	Fleet   godwitv1connect.VolumeServerServiceClient
	Address netip.Addr
	Version string
}

// Server is a volume server.
type Server struct {
	config  Config
	store   *volume.Store
	nbd     *volume.Server
	secure  listeners
	sockets listeners
}

// listeners are a pair for NBD and for control.
type listeners struct{ nbd, control net.Listener }

func (l listeners) close() {
	for _, one := range []net.Listener{l.nbd, l.control} {
		if one != nil {
			_ = one.Close()
		}
	}
}

// New opens the volumes and the listeners.
func New(ctx context.Context, config Config) (_ *Server, err error) {
	s := &Server{config: config}
	if s.store, err = volume.Open(config.Dir); err != nil {
		return nil, err
	}
	for _, info := range s.store.List() {
		if info.Problem != "" {
			config.Log.Error("a volume is not served", "volume", string(info.Name), "problem", info.Problem)
		}
	}
	if err := s.listen(ctx); err != nil {
		s.secure.close()
		s.sockets.close()
		return nil, errors.Join(err, s.store.Close())
	}
	s.nbd = volume.NewServer(volume.Config{
		Volumes: s.store, TLS: tlsConfig(config.Keeper), Identify: identify, MaxConnections: config.MaxConnections, Log: config.Log,
	})
	return s, nil
}

func (s *Server) listen(ctx context.Context) (err error) {
	for _, one := range []struct {
		to      *net.Listener
		address string
		flag    string
	}{{&s.secure.nbd, s.config.Listen, "--listen"}, {&s.secure.control, s.config.Control, "--control"}} {
		var config net.ListenConfig
		if *one.to, err = config.Listen(ctx, "tcp", one.address); err != nil {
			return listenFailed(one.address, "stop what uses the address, or give another one: "+one.flag, err)
		}
	}
	// The folder, not the sockets, is what keeps others out: it is so before
	// there is any socket in it.
	if err := os.MkdirAll(s.config.Run, 0o700); err != nil {
		return listenFailed(s.config.Run, "give a folder that can be made: --run", err)
	}
	if err := os.Chmod(s.config.Run, 0o700); err != nil {
		return listenFailed(s.config.Run, "give a folder of its own: --run", err)
	}
	if s.sockets.nbd, err = s.listenSocket(ctx, nbdSocket); err != nil {
		return err
	}
	s.sockets.control, err = s.listenSocket(ctx, controlSocket)
	return err
}

// listenSocket takes the place of a socket that nobody listens to any more.
func (s *Server) listenSocket(ctx context.Context, name string) (net.Listener, error) {
	path := filepath.Join(s.config.Run, name)
	var dialer net.Dialer
	if conn, err := dialer.DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return nil, listenFailed(path, "another volume server listens there: give this one a folder of its own: --run", nil)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, listenFailed(path, "give another folder: --run", err)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, listenFailed(path, "give another folder: --run", err)
	}
	return listener, nil
}

func listenFailed(address, hint string, err error) error {
	return &fleet.Error{Code: fleet.Failed, Op: "listen on", Subject: address, Hint: hint, Err: err}
}

// Addresses are where NBD and VolumeService are reached by TLS.
func (s *Server) Addresses() (nbd, control net.Addr) {
	return s.secure.nbd.Addr(), s.secure.control.Addr()
}

// Run serves until ctx ends, and returns when all requests are over and
// everything is flushed.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.nbd.Serve(ctx, s.secure.nbd) })
	group.Go(func() error { return s.nbd.ServeLocal(ctx, s.sockets.nbd) })
	group.Go(func() error { return s.serveControl(ctx, s.secure.control, byCertificate) })
	group.Go(func() error { return s.serveControl(ctx, s.sockets.control, bySocket) })
	group.Go(func() error { s.announce(ctx); return nil })
	err := group.Wait()
	return errors.Join(err, s.store.Close())
}

func (s *Server) serveControl(ctx context.Context, listener net.Listener, identified func(http.Handler) http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewVolumeServiceHandler(service{s.store},
		connect.WithInterceptors(wire.ServerInterceptor()), connect.WithReadMaxBytes(messageMax)))
	server := &http.Server{
		Handler: identified(mux), TLSConfig: tlsConfig(s.config.Keeper), ReadHeaderTimeout: headerWithin,
		Protocols: new(http.Protocols), ErrorLog: slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	serve := func() error { return server.ServeTLS(listener, "", "") }
	if listener.Addr().Network() == "unix" {
		server.Protocols.SetUnencryptedHTTP2(true)
		serve = func() error { return server.Serve(listener) }
	}
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// tlsConfig demands a certificate of every client.
func tlsConfig(keeper *pki.Keeper) *tls.Config {
	config := keeper.ServerConfig()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	return config
}

// identify says what a member of the fleet is to NBD.
func identify(state tls.ConnectionState) (volume.Peer, error) {
	member, err := pki.FromConnectionState(state)
	if err != nil {
		return volume.Peer{}, err
	}
	switch member.Kind {
	case pki.Host:
		return volume.Peer{Host: fleet.HostName(member.Name)}, nil
	case pki.Admin:
		return volume.Peer{Operator: true}, nil
	}
	return volume.Peer{}, &fleet.Error{
		Code: fleet.Denied, Op: "use volumes", Subject: member.String(), Cause: "only hosts and administrators may",
	}
}
