package volume

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// DefaultMaxConnections is how many clients a server has at once.
const DefaultMaxConnections = 1024

// threadsMax is how many connections have a thread that waits for them. The rest
// share the runtime's poller.
const threadsMax = 1024

// acceptAgain is how long a server without descriptors or memory waits.
const acceptAgain = 200 * time.Millisecond

// Config says what is served, and to whom.
type Config struct {
	Volumes *Store
	// TLS is what clients that come by TCP have to begin first. It must demand
	// a certificate.
	TLS *tls.Config
	// Identify says who a client is whose certificate TLS has verified.
	Identify func(tls.ConnectionState) (Peer, error)
	// MaxConnections: more are closed as they come; 0 for the default.
	MaxConnections int
	Log            *slog.Logger
}

// Server serves the volumes of a store by NBD.
type Server struct {
	config  Config
	slots   chan struct{} // one for each connection
	waiting chan struct{} // one for each that has a thread
	buffers buffers
}

// NewServer starts nothing: see Serve.
func NewServer(config Config) *Server {
	if config.MaxConnections == 0 {
		config.MaxConnections = DefaultMaxConnections
	}
	return &Server{config: config, slots: make(chan struct{}, config.MaxConnections), waiting: make(chan struct{}, threadsMax)}
}

// Serve serves clients of the fleet by TLS until ctx ends, and returns when all
// connections are closed and their requests over. It closes the listener.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	return s.serve(ctx, listener, handshake{server: s})
}

// ServeLocal serves without TLS, by a socket that only operators can open.
func (s *Server) ServeLocal(ctx context.Context, listener net.Listener) error {
	return s.serve(ctx, listener, handshake{server: s, secure: true, peer: Peer{Operator: true}})
}

func (s *Server) serve(ctx context.Context, listener net.Listener, first handshake) error {
	ctx, cancel := context.WithCancel(ctx)
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if passes(err) {
			s.config.Log.Error("a client could not be accepted", "error", err)
			select {
			case <-time.After(acceptAgain): // when a descriptor is free nobody says
			case <-ctx.Done():
			}
			continue
		}
		if err != nil {
			return &fleet.Error{Code: fleet.Failed, Op: "accept", Subject: listener.Addr().String(), Err: err}
		}
		select {
		case s.slots <- struct{}{}:
			connections.Go(func() {
				defer func() { <-s.slots }()
				s.handle(ctx, conn, first)
			})
		default:
			s.config.Log.Warn("a client was turned away: there are too many", "address", conn.RemoteAddr(), "limit", cap(s.slots))
			_ = conn.Close()
		}
	}
}

// passes tells that only this client can't be accepted, or none at present.
func passes(err error) bool {
	for _, one := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}

// handle serves one connection to its end.
func (s *Server) handle(ctx context.Context, accepted net.Conn, h handshake) {
	conn := newWire(accepted)
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	h.conn, h.raw = conn, conn
	log := s.config.Log.With("address", conn.RemoteAddr().String())
	_ = conn.SetDeadline(time.Now().Add(handshakeWithin)) // fails only if closed, which shows next
	within, cancel := context.WithTimeout(ctx, handshakeWithin)
	a, err := h.run(within)
	cancel()
	if err != nil {
		if !errors.Is(err, errOver) && !errors.Is(err, io.EOF) && ctx.Err() == nil {
			log.Warn("a client was refused", "peer", h.peer.String(), "error", err)
		}
		return
	}
	defer a.detach()
	_ = conn.SetDeadline(time.Time{})
	log = log.With("volume", string(a.volume.name), "epoch", uint64(a.epoch), "peer", h.peer.String())
	log.Info("connected")
	select {
	case s.waiting <- struct{}{}:
		defer func() { <-s.waiting }()
		err = conn.wait()
	default:
	}
	if err == nil {
		err = newSession(h.conn, conn, a, h.dialect, &s.buffers).run()
	}
	log.Info("disconnected", "cause", err)
}
