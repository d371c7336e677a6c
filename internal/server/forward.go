package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

const (
	// callerHeader says for whom a server asks another one, as KIND/NAME. It
	// counts only with a server's certificate.
	callerHeader = "Godwit-Caller"
	// forwardDial bounds the connecting to the leader.
	forwardDial = 2 * time.Second
	// forwardPing is the silence after which the leader is asked for a sign of
	// life, and the time that it has for it.
	forwardPing = time.Second
	// forwardPause is the pause before a leader is tried again that did not
	// take a call.
	forwardPause = 100 * time.Millisecond
)

// answeredHere is what every server answers by itself: reads of records, and
// what is decided by one transaction, first of all the commit of a migration
// and its abort. Sessions find the leader in their own way.
var answeredHere = map[string]bool{
	godwitv1connect.VMServiceGetProcedure:            true,
	godwitv1connect.VMServiceListProcedure:           true,
	godwitv1connect.VMServiceWatchProcedure:          true,
	godwitv1connect.VMServiceConsoleProcedure:        true,
	godwitv1connect.VMServiceTypeProcedure:           true,
	godwitv1connect.NetworkServiceGetProcedure:       true,
	godwitv1connect.NetworkServiceListProcedure:      true,
	godwitv1connect.MigrationServiceListProcedure:    true,
	godwitv1connect.MigrationServiceCancelProcedure:  true,
	godwitv1connect.ServerServiceStatusProcedure:     true,
	godwitv1connect.ServerServiceBackupProcedure:     true,
	godwitv1connect.AgentServiceSessionProcedure:     true,
	godwitv1connect.AgentServiceCommitProcedure:      true,
	godwitv1connect.EnrollServiceEnrollProcedure:     true,
	godwitv1connect.EnrollServiceRenewProcedure:      true,
	godwitv1connect.VolumeServerServiceListProcedure: true,
}

// readAtLeader is what changes nothing, but that only the leader knows: which
// hosts are up, and how far a copy has come. It may be asked for again.
var readAtLeader = map[string]bool{
	godwitv1connect.HostServiceGetProcedure:        true,
	godwitv1connect.HostServiceListProcedure:       true,
	godwitv1connect.MigrationServiceGetProcedure:   true,
	godwitv1connect.MigrationServiceWatchProcedure: true,
}

// forwarding sends calls that only the leader can answer on to it. Callers that
// have no right to their call are refused here.
func (s *Server) forwarding(next http.Handler) http.Handler {
	refuse := connect.NewErrorWriter()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			who := callerOf(r.In.Context()).identity
			r.Out.Header.Set(callerHeader, string(who.Kind)+"/"+who.Name)
		},
		Transport:     &toLeader{leader: s.leader, transport: s.serverTransport()},
		FlushInterval: -1, // every message of a stream at once
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			_ = refuse.Write(w, r, wire.ToConnect(forwardFailed(r, err)))
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := callerOf(r.Context())
		own, _, _ := s.leader.now()
		switch {
		case own != nil || answeredHere[r.URL.Path] || authorize(r.Context(), r.URL.Path) != nil:
			next.ServeHTTP(w, r)
		case who.forwarded:
			// Whoever sent it here looks for the leader again.
			w.WriteHeader(http.StatusMisdirectedRequest)
		default:
			s.forward(proxy, next, w, r)
		}
	})
}

// forward waits for a leader; that may turn out to be this server.
func (s *Server) forward(proxy, next http.Handler, w http.ResponseWriter, r *http.Request) {
	own, _, err := s.leader.await(r.Context(), leaderWithin)
	if err == nil && own != nil {
		next.ServeHTTP(w, r)
		return
	}
	if err == nil {
		err = keepBody(r)
	}
	if err != nil {
		_ = connect.NewErrorWriter().Write(w, r, wire.ToConnect(err))
		return
	}
	proxy.ServeHTTP(w, r)
}

// keepBody reads a request, so that it can be sent more than once.
func keepBody(r *http.Request) error {
	const envelope = 5 // bytes before a message of a stream
	body, err := io.ReadAll(io.LimitReader(r.Body, maxMessageBytes+envelope+1))
	switch {
	case err != nil:
		return err
	case len(body) > maxMessageBytes+envelope:
		return &fleet.Error{Code: fleet.Exhausted, Op: "call", Subject: r.URL.Path, Cause: "the request is too large"}
	}
	r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	r.Body, err = r.GetBody()
	r.ContentLength = int64(len(body))
	return err
}

// forwardFailed words the end of a call on its way.
func forwardFailed(r *http.Request, err error) error {
	if _, known := errors.AsType[*fleet.Error](err); known || r.Context().Err() != nil {
		return err
	}
	return &fleet.Error{
		Code: fleet.Unavailable, Op: "call", Subject: strings.TrimPrefix(r.URL.Path, "/"),
		Cause: "the leading server ended before it answered",
		Hint:  "it may still have been done: look before doing it again", Err: err,
	}
}

// serverTransport reaches other servers, as this one.
func (s *Server) serverTransport() *http.Transport {
	transport := &http.Transport{
		TLSClientConfig:     s.certificate.ClientConfig(pki.Expect{Kind: pki.Server}),
		Protocols:           new(http.Protocols),
		HTTP2:               &http.HTTP2Config{SendPingTimeout: forwardPing, PingTimeout: forwardPing},
		TLSHandshakeTimeout: forwardDial,
		IdleConnTimeout:     idleMax,
		DialContext:         (&net.Dialer{Timeout: forwardDial}).DialContext,
	}
	transport.Protocols.SetHTTP2(true)
	return transport
}

// toLeader carries calls to the server that leads. One that did not get there
// goes to the next leader, and so does one that only reads and was not answered.
type toLeader struct {
	leader    *leader
	transport *http.Transport
}

func (t *toLeader) RoundTrip(request *http.Request) (*http.Response, error) {
	last := time.Now().Add(leaderWithin)
	for {
		response, err := t.try(request, time.Until(last))
		misdirected := err == nil && response.StatusCode == http.StatusMisdirectedRequest
		switch {
		case err == nil && !misdirected, request.Context().Err() != nil:
			return response, err
		case err != nil && !neverSent(err) && !readAtLeader[request.URL.Path]:
			return nil, err
		}
		if misdirected {
			_ = response.Body.Close()
			err = noLeader()
		}
		if time.Now().After(last) {
			return nil, err
		}
		t.pause(request.Context())
	}
}

// try sends a call once.
func (t *toLeader) try(request *http.Request, limit time.Duration) (*http.Response, error) {
	own, to, err := t.leader.await(request.Context(), max(0, limit))
	if err != nil {
		return nil, err
	}
	if own != nil {
		to = t.leader.own // elected since; it answers itself like any other
	}
	target, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	attempt := request.Clone(request.Context())
	attempt.URL.Scheme, attempt.URL.Host, attempt.Host = target.Scheme, target.Host, target.Host
	if request.GetBody != nil {
		if attempt.Body, err = request.GetBody(); err != nil {
			return nil, err
		}
	}
	return t.transport.RoundTrip(attempt)
}

// pause ends early when another server leads.
func (t *toLeader) pause(ctx context.Context) {
	_, _, changed := t.leader.now()
	timer := time.NewTimer(forwardPause)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// neverSent tells errors of calls that cannot have reached anybody.
func neverSent(err error) bool {
	failed, ok := errors.AsType[*net.OpError](err)
	return ok && failed.Op == "dial" || fleet.CodeOf(err) == fleet.Unavailable
}

// onBehalf reads for whom another server asks.
func onBehalf(text string) pki.Identity {
	kind, name, _ := strings.Cut(text, "/")
	return pki.Identity{Kind: pki.Kind(kind), Name: name}
}
