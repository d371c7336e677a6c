package wire

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"
)

// ServerInterceptor gives every error of a handler its form on the wire.
func ServerInterceptor() connect.Interceptor { return serverInterceptor{} }

type serverInterceptor struct{}

func (serverInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, request)
		if err != nil {
			return nil, ToConnect(err)
		}
		return response, nil
	}
}

func (serverInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (serverInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return ToConnect(err)
		}
		return nil
	}
}

// ClientInterceptor gives callers the errors that the server's handlers
// returned, and for calls that never reached it a *fleet.Error that names the
// server by the given address. Errors of the caller's own context keep their
// identity for errors.Is; io.EOF at the end of a stream stays io.EOF.
func ClientInterceptor(server string) connect.Interceptor { return clientInterceptor{server: server} }

type clientInterceptor struct{ server string }

func (i clientInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, request)
		if err != nil {
			return nil, i.decode(ctx, err)
		}
		return response, nil
	}
}

func (i clientInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &clientConn{StreamingClientConn: next(ctx, spec), decode: func(err error) error {
			if err == nil || errors.Is(err, io.EOF) {
				return err
			}
			return i.decode(ctx, err)
		}}
	}
}

func (i clientInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// decode lets the caller's own cancelling win over whatever it broke.
func (i clientInterceptor) decode(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return context.Canceled
	}
	return fromConnect(err, i.server)
}

// clientConn decodes the errors of one stream.
type clientConn struct {
	connect.StreamingClientConn
	decode func(error) error
}

func (c *clientConn) Send(message any) error {
	return c.decode(c.StreamingClientConn.Send(message))
}

func (c *clientConn) Receive(message any) error {
	return c.decode(c.StreamingClientConn.Receive(message))
}

func (c *clientConn) CloseRequest() error {
	return c.decode(c.StreamingClientConn.CloseRequest())
}

func (c *clientConn) CloseResponse() error {
	return c.decode(c.StreamingClientConn.CloseResponse())
}
