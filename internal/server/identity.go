package server

import (
	"context"
	"net/http"
	"strings"

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
	err       error        // why there is no identity
	deadlines *http.ResponseController
}

// byCertificate makes callers of a TLS listener known to the handlers.
func byCertificate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := caller{deadlines: http.NewResponseController(w)}
		who.identity, who.err = pki.FromConnectionState(*r.TLS)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
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
	if who.identity == (pki.Identity{}) {
		return &fleet.Error{
			Code: fleet.Denied, Op: "call", Subject: service,
			Cause: "the call came without a valid client certificate",
			Hint:  "give one, such as the server's admin bundle, or use the server's Unix socket", Err: who.err,
		}
	}
	allowed := false
	switch service {
	case godwitv1connect.VMServiceName, godwitv1connect.HostServiceName,
		godwitv1connect.NetworkServiceName, godwitv1connect.MigrationServiceName:
		allowed = who.identity.Kind == pki.Admin
	case godwitv1connect.AgentServiceName:
		allowed = who.identity.Kind == pki.Host
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

// authorizer applies authorize to every call.
type authorizer struct{}

func (authorizer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		if err := authorize(ctx, request.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, request)
	}
}

func (authorizer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (authorizer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := authorize(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, conn)
	}
}
