package server

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

const (
	headerWithin    = 10 * time.Second
	idleMax         = 2 * time.Minute
	shutdownWithin  = 2 * time.Second
	maxMessageBytes = 4 << 20
	// stuckMax is how long a client may take nothing of what is sent, or not
	// answer a ping when it has said nothing for as long. It is long, since
	// what is on its way to a client by a slow line goes before the ping.
	stuckMax = time.Minute
	// maxHelloBytes has room for more than a thousand instances on a host.
	maxHelloBytes = 1 << 20
)

// listen opens both listeners.
func (s *Server) listen(ctx context.Context) (err error) {
	var config net.ListenConfig
	if s.secure, err = config.Listen(ctx, "tcp", s.config.Listen); err != nil {
		return listenFailed(s.config.Listen, "the address cannot be listened on", "stop what uses it, or give another address", err)
	}
	if s.socket, err = listenSocket(ctx, s.config.Socket); err != nil {
		_ = s.secure.Close()
		return err
	}
	return nil
}

// listenSocket opens a Unix socket that only this user can connect to. It is
// made under another name and put in place with its mode set, so that there is
// no instant in which others could connect.
func listenSocket(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, listenFailed(path, "its folder cannot be made", "", err)
	}
	var dialer net.Dialer
	if conn, err := dialer.DialContext(ctx, "unix", path); err == nil {
		_ = conn.Close()
		return nil, listenFailed(path, "another server listens there", "stop it, or give this one a socket of its own", nil)
	}
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, listenFailed(path, "an old socket cannot be removed", "", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", fresh)
	if err != nil {
		return nil, listenFailed(path, "the socket cannot be made", "", err)
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // it has another name by then
	if err := errors.Join(os.Chmod(fresh, 0o600), os.Rename(fresh, path)); err != nil {
		_ = listener.Close()
		_ = os.Remove(fresh)
		return nil, listenFailed(path, "the socket cannot be put in place", "", err)
	}
	return listener, nil
}

func listenFailed(address, cause, hint string, err error) error {
	return &fleet.Error{Code: fleet.Failed, Op: "listen", Subject: address, Cause: cause, Hint: hint, Err: err}
}

func (s *Server) closeListeners() {
	_ = s.secure.Close()
	_ = s.socket.Close()
	_ = os.Remove(s.config.Socket)
}

// routes are all services.
func (s *Server) routes() http.Handler {
	options := []connect.HandlerOption{
		// The first is the outermost: it also spells the gates' errors.
		connect.WithInterceptors(wire.ServerInterceptor(), gate(authorize), gate(s.mirror.refuseRestored)),
		connect.WithReadMaxBytes(maxMessageBytes),
		wire.StrictJSON(),
	}
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewVMServiceHandler(vmService{s}, options...))
	mux.Handle(godwitv1connect.NewHostServiceHandler(hostService{s}, options...))
	mux.Handle(godwitv1connect.NewNetworkServiceHandler(networkService{s}, options...))
	mux.Handle(godwitv1connect.NewMigrationServiceHandler(s.migrationService(), options...))
	mux.Handle(godwitv1connect.NewAgentServiceHandler(agentService{s}, append(options, connect.WithReadMaxBytes(maxHelloBytes))...))
	mux.Handle(godwitv1connect.NewEnrollServiceHandler(enrollService{s}, options...))
	mux.Handle(godwitv1connect.NewServerServiceHandler(serverService{s}, options...))
	mux.Handle(godwitv1connect.NewVolumeServerServiceHandler(volumeServerService{s}, options...))
	return mux
}

// serve answers on both listeners until ctx ends, which also ends every call.
func (s *Server) serve(ctx context.Context) error {
	routes := s.routes()
	if s.config.Replicas {
		routes = s.forwarding(routes)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.authority.CertificatePEM())
	secure := s.httpServer(ctx, byCertificate(roots, routes))
	secure.TLSConfig = tlsConfig(s.certificate)
	secure.ConnContext = withConnection
	socket := s.httpServer(ctx, bySocket(routes))
	socket.Protocols = new(http.Protocols)
	socket.Protocols.SetHTTP1(true)
	socket.Protocols.SetUnencryptedHTTP2(true)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return ended(secure.ServeTLS(s.secure, "", "")) })
	group.Go(func() error { return ended(socket.Serve(s.socket)) })
	group.Go(func() error {
		<-ctx.Done()
		return errors.Join(shutDown(secure), shutDown(socket))
	})
	return group.Wait()
}

func (s *Server) httpServer(ctx context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: headerWithin,
		IdleTimeout:       idleMax,
		HTTP2:             &http.HTTP2Config{WriteByteTimeout: stuckMax, SendPingTimeout: stuckMax, PingTimeout: stuckMax},
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// shutDown lets calls that are about to end do so, and cuts the others.
func shutDown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownWithin)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return server.Close()
	}
	return nil
}
