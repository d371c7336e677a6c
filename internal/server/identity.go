package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

type callerKey struct{}

// caller is who makes a call, and by what right.
type caller struct {
	identity  pki.Identity // zero without a certificate
	local     bool         // came in by the Unix socket
	forwarded bool         // another server asks for it
	refused   error        // why its certificate does not count
	deadlines *http.ResponseController
}

type connectionKey struct{}

// connection is one TLS connection, whose certificate is checked once.
type connection struct {
	once     sync.Once
	identity pki.Identity
	refused  error
}

// withConnection is for http.Server.ConnContext.
func withConnection(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, new(connection))
}

// tlsConfig lets the handshake succeed whatever certificate the client shows;
// byCertificate checks it. A client whose handshake fails is told an alert at
// best, and often nothing at all, since in TLS 1.3 it believes by then to be
// connected; a call that fails says what is wrong and what to do.
func tlsConfig(keeper *pki.Keeper) *tls.Config {
	config := keeper.ServerConfig()
	config.ClientAuth = tls.RequestClientCert
	config.VerifyConnection = nil
	return config
}

// byCertificate makes callers of a TLS listener known to the handlers.
func byCertificate(roots *x509.CertPool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := r.Context().Value(connectionKey{}).(*connection)
		conn.once.Do(func() { conn.identity, conn.refused = identify(roots, *r.TLS) })
		who := caller{identity: conn.identity, refused: conn.refused, deadlines: http.NewResponseController(w)}
		if text := r.Header.Get(callerHeader); text != "" && who.identity.Kind == pki.Server {
			who.identity, who.forwarded = onBehalf(text), true
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
}

// identify gives the zero identity for a client without a certificate. It does
// what the handshake would do with tls.VerifyClientCertIfGiven; that the client
// has the certificate's key the handshake has proven.
func identify(roots *x509.CertPool, state tls.ConnectionState) (pki.Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return pki.Identity{}, nil
	}
	leaf := state.PeerCertificates[0]
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return pki.Identity{}, refusedCertificate(leaf, err)
	}
	state.VerifiedChains = chains
	return pki.FromConnectionState(state)
}

func refusedCertificate(leaf *x509.Certificate, err error) error {
	refusal := &fleet.Error{
		Code: fleet.Denied, Op: "check certificate", Subject: leaf.Subject.CommonName,
		Cause: "it is not valid in this fleet", Hint: "give one of this fleet: enrol the host, or take the server's admin bundle", Err: err,
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		refusal.Cause = fmt.Sprintf("it is valid from %s to %s only", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
		refusal.Hint = "if it is over, enrol the host again with a new token, or take the server's present admin bundle; if not, set the clock"
	}
	return refusal
}

// bySocket makes every caller an administrator: the socket's file mode is what
// admits them.
func bySocket(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := caller{
			identity:  pki.Identity{Kind: pki.Admin, Name: "socket"},
			local:     true,
			deadlines: http.NewResponseController(w),
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
}

func callerOf(ctx context.Context) caller {
	who, _ := ctx.Value(callerKey{}).(caller)
	return who
}

// authorize decides by the service who may call it.
func authorize(ctx context.Context, procedure string) error {
	who := callerOf(ctx)
	service, _, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	if procedure == godwitv1connect.EnrollServiceEnrollProcedure {
		return nil // the token decides
	}
	if who.refused != nil {
		return who.refused
	}
	if who.identity == (pki.Identity{}) {
		return &fleet.Error{
			Code: fleet.Denied, Op: "call", Subject: service,
			Cause: "the call came without a client certificate",
			Hint:  "give one, such as the server's admin bundle, or use the server's Unix socket",
		}
	}
	allowed := false
	switch service {
	case godwitv1connect.VMServiceName, godwitv1connect.HostServiceName,
		godwitv1connect.NetworkServiceName, godwitv1connect.MigrationServiceName, godwitv1connect.ServerServiceName:
		allowed = who.identity.Kind == pki.Admin
	case godwitv1connect.AgentServiceName:
		allowed = who.identity.Kind == pki.Host
	case godwitv1connect.VolumeServerServiceName:
		allowed = mayAskOfVolumeServers(who.identity, procedure == godwitv1connect.VolumeServerServiceAnnounceProcedure)
	case godwitv1connect.EnrollServiceName:
		allowed = !who.local // there must be a certificate to renew
	}
	if allowed {
		return nil
	}
	return &fleet.Error{
		Code: fleet.Denied, Op: "call", Subject: service,
		Cause: who.identity.String() + " may not use this service",
	}
}

// gate is an interceptor that lets every call pass that it does not refuse.
type gate func(ctx context.Context, procedure string) error

func (g gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g(ctx, request.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, request)
	}
}

func (gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (g gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := g(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, conn)
	}
}
