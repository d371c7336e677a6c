package agent

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// fakeServer speaks the real protocol of agents over real TLS, and decides
// nothing: the test says what commands go out and how a Commit is answered.
type fakeServer struct {
	godwitv1connect.UnimplementedAgentServiceHandler
	t         *testing.T
	url       string
	authority *pki.Authority

	mu     sync.Mutex
	peers  map[string]*peer
	commit func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error)
}

// peer is the server's end of all sessions with one host.
type peer struct {
	t    *testing.T
	name string

	mu      sync.Mutex
	changed chan struct{} // closed with every change of what follows
	closed  bool          // to new sessions
	mute    bool          // new sessions are left without an answer
	hellos  []*godwitv1.Hello
	reports []*godwitv1.Report
	applied []int64
	out     chan *godwitv1.SessionResponse // of the present session, or nil
	cut     context.CancelFunc
}

func newFakeServer(t *testing.T) *fakeServer {
	t.Helper()
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &fakeServer{t: t, authority: authority, peers: map[string]*peer{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "https://" + listener.Addr().String()
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewAgentServiceHandler(s, connect.WithInterceptors(wire.ServerInterceptor())))
	server := &http.Server{
		Handler: mux, TLSConfig: s.keeper(pki.Identity{Kind: pki.Server, Name: "control"}).ServerConfig(),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { server.Close() })
	return s
}

// keeper gives a member of that identity its certificate.
func (s *fakeServer) keeper(id pki.Identity) *pki.Keeper {
	s.t.Helper()
	key, request, err := pki.NewKeyAndRequest(id.Name)
	if err != nil {
		s.t.Fatal(err)
	}
	certificate, err := s.authority.Sign(request, id, pki.Names{}, 0, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	dir := s.t.TempDir()
	if err := (pki.Credentials{Certificate: certificate, Key: key, Authority: s.authority.CertificatePEM()}).Save(dir); err != nil {
		s.t.Fatal(err)
	}
	keeper, err := pki.OpenKeeper(dir, nil, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return keeper
}

// onCommit sets what answers a Commit.
func (s *fakeServer) onCommit(answer func(context.Context, *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.commit = answer
}

func (s *fakeServer) Commit(ctx context.Context, stream *connect.BidiStream[godwitv1.CommitRequest, godwitv1.CommitResponse]) error {
	for {
		request, err := stream.Receive()
		if err != nil {
			return err
		}
		if !request.GetLoaded() {
			continue
		}
		s.mu.Lock()
		answer := s.commit
		s.mu.Unlock()
		if answer == nil {
			s.t.Errorf("nobody expected %v", request)
			return connect.NewError(connect.CodeUnimplemented, nil)
		}
		response, err := answer(ctx, request)
		if err != nil {
			return err
		}
		return stream.Send(response)
	}
}

func (s *fakeServer) peer(name string) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[name] == nil {
		s.peers[name] = &peer{t: s.t, name: name, changed: make(chan struct{})}
	}
	return s.peers[name]
}

func (s *fakeServer) Session(ctx context.Context, stream *connect.BidiStream[godwitv1.SessionRequest, godwitv1.SessionResponse]) error {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	p := s.peer(first.GetHello().GetHost().GetName())
	out, err := p.open(first.GetHello(), cut)
	if err != nil {
		return err
	}
	defer p.gone(out)
	go func() {
		defer cut()
		for {
			message, err := stream.Receive()
			if err != nil {
				return
			}
			p.heard(message)
		}
	}()
	for {
		select {
		case message := <-out:
			if err := stream.Send(message); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *peer) open(hello *godwitv1.Hello, cut context.CancelFunc) (chan *godwitv1.SessionResponse, error) {
	out := make(chan *godwitv1.SessionResponse, 64)
	out <- &godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Welcome{Welcome: &godwitv1.Welcome{HeartbeatMs: patience.Milliseconds()}}}
	closed := false
	p.change(func() {
		if p.mute {
			<-out
		}
		if closed = p.closed; !closed {
			p.hellos, p.out, p.cut = append(p.hellos, hello), out, cut
		}
	})
	if closed {
		return nil, connect.NewError(connect.CodeUnavailable, nil)
	}
	return out, nil
}

func (p *peer) gone(out chan *godwitv1.SessionResponse) {
	p.change(func() {
		if p.out == out {
			p.out = nil
		}
	})
}

func (p *peer) heard(message *godwitv1.SessionRequest) {
	p.change(func() {
		switch {
		case message.GetReport() != nil:
			p.reports = append(p.reports, message.GetReport())
		case message.GetAddressesApplied() != nil:
			p.applied = append(p.applied, message.GetAddressesApplied().GetVersion())
		}
	})
}

func (p *peer) change(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// await waits until the condition holds; it is called with the peer locked.
func (p *peer) await(what string, holds func() bool) {
	p.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		done, changed := holds(), p.changed
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.t.Fatalf("%s: no %s; it reported %v", p.name, what, p.reports)
		}
	}
}

func (p *peer) awaitSession() {
	p.t.Helper()
	p.await("session", func() bool { return p.out != nil })
}

// hello is what the agent said at the start of the present session.
func (p *peer) hello() *godwitv1.Hello {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hellos[len(p.hellos)-1]
}

// shut ends the session and refuses others until reopen.
func (p *peer) shut() {
	p.t.Helper()
	p.change(func() {
		p.closed = true
		p.cut()
	})
	p.await("end of its session", func() bool { return p.out == nil })
}

func (p *peer) reopen() {
	p.t.Helper()
	p.change(func() { p.closed = false })
	p.awaitSession()
}

func (p *peer) send(message *godwitv1.SessionResponse) {
	p.t.Helper()
	p.mu.Lock()
	out := p.out
	p.mu.Unlock()
	if out == nil {
		p.t.Fatalf("%s has no session", p.name)
	}
	out <- message
}

func (p *peer) sendCommand(command *godwitv1.Command) {
	p.t.Helper()
	p.send(&godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Command{Command: command}})
}

// awaitReports waits for the count-th report that matches, and gives it.
func (p *peer) awaitReports(count int, what string, matches func(*godwitv1.Report) bool) *godwitv1.Report {
	p.t.Helper()
	var last *godwitv1.Report
	p.await(what, func() bool {
		found := p.matching(matches)
		if len(found) < count {
			return false
		}
		last = found[count-1]
		return true
	})
	return last
}

// awaitReport waits for a report that matches.
func (p *peer) awaitReport(what string, matches func(*godwitv1.Report) bool) *godwitv1.Report {
	p.t.Helper()
	return p.awaitReports(1, what, matches)
}

// count gives how many reports have come that match.
func (p *peer) count(matches func(*godwitv1.Report) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.matching(matches))
}

func (p *peer) matching(matches func(*godwitv1.Report) bool) (found []*godwitv1.Report) {
	for _, report := range p.reports {
		if matches(report) {
			found = append(found, report)
		}
	}
	return found
}

// do sends a command and waits for its answer.
func (p *peer) do(command *godwitv1.Command) *godwitv1.Report {
	p.t.Helper()
	p.sendCommand(command)
	return p.awaitReport("answer", answers(command))
}

// answers matches the answers to a command.
func answers(command *godwitv1.Command) func(*godwitv1.Report) bool {
	return func(r *godwitv1.Report) bool {
		return r.GetSubject() == command.GetSubject() && r.GetSequence() == command.GetSequence()
	}
}
