package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// severalDial bounds the connecting to one of several servers: another one may
// well answer. When none has, each is tried once more with the usual limit.
const severalDial = 500 * time.Millisecond

// Servers gives the addresses that a Config.Server has, which are separated by
// commas.
func Servers(addresses string) (servers []string) {
	for one := range strings.SplitSeq(addresses, ",") {
		if one = strings.TrimSpace(one); one != "" {
			servers = append(servers, one)
		}
	}
	return servers
}

// route is the way to one server.
type route struct {
	base      string // "https://10.0.0.1:7443"
	transport *http.Transport
	quick     atomic.Bool // connects within severalDial or not at all
}

// failover carries each call to the first of several servers that can be
// connected to, beginning with the one that answered the last. A call that
// may have reached a server is never sent to another.
type failover struct {
	routes []*route
	last   atomic.Int32 // index of the route to begin with
}

// several gives the ways to the servers that config names.
func (c Config) several(servers []string) (*failover, error) {
	f := &failover{}
	for _, server := range servers {
		one := c
		one.Server = server
		transport, base, err := one.transport()
		if err != nil {
			return nil, err
		}
		r := &route{base: base, transport: transport}
		r.quick.Store(true)
		dial := transport.DialContext
		transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if r.quick.Load() {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, severalDial)
				defer cancel()
			}
			return dial(ctx, network, address)
		}
		f.routes = append(f.routes, r)
	}
	return f, nil
}

// CloseIdleConnections is for http.Client.
func (f *failover) CloseIdleConnections() {
	for _, r := range f.routes {
		r.transport.CloseIdleConnections()
	}
}

// RoundTrip tries the servers in turn, quickly and then with patience.
func (f *failover) RoundTrip(request *http.Request) (response *http.Response, err error) {
	body := &keptBody{ReadCloser: request.Body}
	first := int(f.last.Load())
	for _, quick := range []bool{true, false} {
		for i := range f.routes {
			at := (first + i) % len(f.routes)
			f.routes[at].quick.Store(quick)
			response, err = f.routes[at].try(request, body)
			// One that broke a call off may hang: the next call goes elsewhere.
			next := at
			if err != nil {
				next = (at + 1) % len(f.routes)
			}
			f.last.Store(int32(next))
			if err == nil || !neverSent(err) || request.Context().Err() != nil {
				return response, errors.Join(err, body.release())
			}
		}
	}
	return nil, errors.Join(err, body.release())
}

// try sends a call once.
func (r *route) try(request *http.Request, body *keptBody) (*http.Response, error) {
	attempt := request.Clone(request.Context())
	if request.Body != nil {
		attempt.Body = body
	}
	scheme, host, _ := strings.Cut(r.base, "://")
	attempt.URL.Scheme, attempt.URL.Host, attempt.Host = scheme, host, host
	return r.transport.RoundTrip(attempt)
}

// neverSent tells errors of calls for which not even a connection was opened.
func neverSent(err error) bool {
	failed, ok := errors.AsType[*net.OpError](err)
	return ok && failed.Op == "dial" || errors.Is(err, context.DeadlineExceeded) || isHandshakeTimeout(err)
}

// isHandshakeTimeout: net/http has no other name for it.
func isHandshakeTimeout(err error) bool {
	return strings.HasSuffix(err.Error(), "TLS handshake timeout")
}

// keptBody is a request's body that outlives a failed attempt, which closes it.
type keptBody struct {
	io.ReadCloser
	mu       sync.Mutex
	closed   bool // an attempt has closed it
	released bool // no further attempt is made
}

func (b *keptBody) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if !b.released {
		return nil
	}
	return b.ReadCloser.Close()
}

// release lets the present attempt close the body, and closes it if that has
// been asked for.
func (b *keptBody) release() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.released = true
	if !b.closed || b.ReadCloser == nil {
		return nil
	}
	return b.ReadCloser.Close()
}
