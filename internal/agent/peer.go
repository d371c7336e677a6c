package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// DefaultPeerPort is where an agent listens for those of other hosts.
const DefaultPeerPort = 7444

const (
	peerHeaderWithin = 5 * time.Second
	peerReadWithin   = 10 * time.Second
	// peerAnswerWithin is for a whole call, longer than any caller waits: who
	// does not read its answer is not kept.
	peerAnswerWithin = 30 * time.Second
	peerIdleMax      = 2 * time.Minute
	peerMessageMax   = 64 << 10 // bytes

	// pathWithin is how long frames wait for a link that is cut. The time that a
	// roll-back may take is three times that.
	pathWithin = 10 * time.Second
	pathTry    = 500 * time.Millisecond // for one try; a SYN is sent again after 1 s
	pathEvery  = 100 * time.Millisecond // between those that fail at once
)

// Peers is how agents reach each other. The zero value is none: then a switch
// that the servers leave undecided waits for them.
type Peers struct {
	Listener net.Listener // at the host's address
	// Dial connects to another host; nil is the usual way.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// port is what other hosts are told of the listener.
func (p Peers) port() uint16 {
	if p.Listener == nil {
		return 0
	}
	_, text, _ := net.SplitHostPort(p.Listener.Addr().String())
	port, _ := strconv.ParseUint(text, 10, 16)
	return uint16(port)
}

// callerKey is the key of who calls, in a call's context.
type callerKey struct{}

// peerCaller is who calls; the zero identity is nobody known.
type peerCaller struct {
	pki.Identity
	deadlines *http.ResponseController
}

func callerOf(ctx context.Context) peerCaller {
	who, _ := ctx.Value(callerKey{}).(peerCaller)
	return who
}

// servePeers answers the agents of other hosts until ctx ends.
func (a *Agent) servePeers(ctx context.Context) {
	listener := a.config.Peers.Listener
	if listener == nil {
		return
	}
	mux := http.NewServeMux()
	options := connect.WithHandlerOptions(connect.WithInterceptors(wire.ServerInterceptor()), connect.WithReadMaxBytes(peerMessageMax))
	mux.Handle(godwitv1connect.NewPeerServiceHandler(peerService{a}, options))
	mux.Handle(godwitv1connect.NewConsoleServiceHandler(consoleService{a}, options))
	mux.Handle(godwitv1connect.NewMeasureServiceHandler(measureService{a}, options))
	server := &http.Server{
		Handler: byCertificate(mux), TLSConfig: a.config.Keeper.ServerConfig(),
		ReadHeaderTimeout: peerHeaderWithin, ReadTimeout: peerReadWithin, WriteTimeout: peerAnswerWithin, IdleTimeout: peerIdleMax,
		HTTP2:    &http.HTTP2Config{WriteByteTimeout: peerAnswerWithin}, // WriteTimeout ends the call only
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		a.log.Error("other hosts can't reach this agent any more", "error", err)
	}
}

// byCertificate makes known who calls.
func byCertificate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := peerCaller{deadlines: http.NewResponseController(w)}
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			who.Identity, _ = pki.FromConnectionState(*r.TLS) // another one's is nobody's
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
}

// peerService answers for the targets on this host.
type peerService struct{ agent *Agent }

func (s peerService) GiveUp(ctx context.Context, request *godwitv1.GiveUpRequest) (*godwitv1.GiveUpResponse, error) {
	m, err := s.target(ctx, request.GetMigration(), request.GetVm(), request.GetEpoch())
	if err != nil {
		return nil, err
	}
	gaveUp := false
	err = m.inTurn(ctx, func() (err error) {
		gaveUp, err = m.giveUp(ctx, request.GetMigration())
		return err
	})
	if err != nil { // the worker may be at it yet
		return nil, err
	}
	return &godwitv1.GiveUpResponse{Refused: gaveUp}, nil
}

func (s peerService) ReturnFrames(ctx context.Context, request *godwitv1.ReturnFramesRequest) (*godwitv1.ReturnFramesResponse, error) {
	m, err := s.target(ctx, request.GetMigration(), request.GetVm(), request.GetEpoch())
	if err != nil {
		return nil, err
	}
	var frames int
	err = m.inTurn(ctx, func() (err error) {
		if m.record.Role != refused {
			return &fleet.Error{Code: fleet.Conflict, Op: "return frames", Subject: "vm " + string(m.key.vm), Cause: "its target has not given up"}
		}
		if frames, err = m.drainTo(ctx, request.GetSourceAddress()); err != nil {
			return err
		}
		m.keepTaps(m.ports)
		return m.kill(ctx) // what comes now goes to the source at once
	})
	if err != nil { // the worker may be at it yet
		return nil, err
	}
	return &godwitv1.ReturnFramesResponse{Frames: int64(frames)}, nil
}

// target gives the target of a migration whose source calls. One that is not
// here is no proof of anything: it may have run, and moved on since.
func (s peerService) target(ctx context.Context, migration, vm string, epoch uint64) (*machine, error) {
	refusal := &fleet.Error{Op: "ask its target", Subject: "migration " + migration}
	caller := callerOf(ctx)
	if caller.Kind != pki.Host {
		refusal.Code, refusal.Cause = fleet.Denied, "only hosts may ask, and they show their certificates"
		return nil, refusal
	}
	m := s.agent.find(machineKey{fleet.VMName(vm), fleet.Epoch(epoch)})
	if m == nil {
		refusal.Code, refusal.Cause = fleet.NotFound, fmt.Sprintf("%s has no instance of %s at epoch %d", s.agent.config.Name, vm, epoch)
		return nil, refusal
	}
	m.mu.Lock()
	own := m.record
	m.mu.Unlock()
	if own.Migration != "" && own.Migration != migration {
		refusal.Code, refusal.Cause = fleet.Conflict, "the instance is of migration "+own.Migration
		return nil, refusal
	}
	if own.Peer.Host != "" && fleet.HostName(caller.Name) != own.Peer.Host {
		refusal.Code, refusal.Cause = fleet.Denied, fmt.Sprintf("%s is not its source", caller.Name)
		return nil, refusal
	}
	return m, nil
}

// peerAddress gives where the agent of a host listens; "" if it does not.
func peerAddress(host string, port uint32) string {
	if port == 0 {
		return ""
	}
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}

// dialPeer gives a client of another host's agent; nothing is sent yet.
func (a *Agent) dialPeer(peer peerRecord) (*client.Peer, error) {
	return client.DialPeer(client.Config{
		Server: "https://" + peer.Address, Dial: a.config.Peers.Dial,
		TLS: a.config.Keeper.ClientConfig(pki.Expect{Kind: pki.Host, Name: string(peer.Host)}),
	})
}

// awaitPath waits until packets come to another host's agent and back, but not
// longer than pathWithin: a frame that is sent while the link is cut is gone. That no
// agent listens there is an answer, too.
func (a *Agent) awaitPath(ctx context.Context, address string) {
	if address == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, pathWithin)
	defer cancel()
	dial := a.config.Peers.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	again := time.NewTicker(pathEvery)
	defer again.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, pathTry)
		conn, err := dial(once, "tcp", address)
		cancel()
		if err == nil {
			conn.Close()
			return
		}
		if errors.Is(err, unix.ECONNREFUSED) {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			a.log.Warn("a host can't be reached, and frames are sent to it all the same", "address", address, "error", err)
			return
		}
	}
}
