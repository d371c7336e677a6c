package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

const (
	sessionQueue  = 256 // reports that wait to be sent
	retryMin      = 100 * time.Millisecond
	retryMax      = 5 * time.Second
	missedBeats   = 3
	welcomeWithin = 10 * time.Second // of a server that takes the session
	machineIDFile = "/etc/machine-id"
	defaultBeatMs = 2000
	maxBeatMs     = 60_000
)

// stream is a session's stream, as Connect gives it.
type stream = connect.BidiStreamForClientSimple[godwitv1.SessionRequest, godwitv1.SessionResponse]

// session is one stream to the server.
type session struct {
	queue     chan *godwitv1.SessionRequest
	addresses chan *godwitv1.AddressMap // the newest only
	end       context.CancelCauseFunc
}

func (s *session) say(report *godwitv1.Report) {
	if report.At == nil {
		report.At = timestamppb.Now()
	}
	s.send(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: report}})
}

// send queues a message. A session that does not get its messages away is
// ended: the next one begins with everything that matters.
func (s *session) send(message *godwitv1.SessionRequest) {
	select {
	case s.queue <- message:
	default:
		s.end(errors.New("the server does not take messages"))
	}
}

// keepSession holds a session for as long as ctx lives. It pauses only when it
// has been to as many servers as there are.
func (a *Agent) keepSession(ctx context.Context) {
	wait, tried := retryMin, 0
	for ctx.Err() == nil {
		began := time.Now()
		server := a.servers.current()
		err := a.runSession(ctx, server.Client)
		if ctx.Err() != nil {
			return
		}
		a.log.Warn("no session with the server", "server", server.URL, "error", err, "hint", fleet.HintOf(err))
		a.turn(err)
		if time.Since(began) > retryMax {
			wait, tried = retryMin, 0
		}
		if tried++; tried < a.servers.count() {
			continue
		}
		tried = 0
		pause := time.NewTimer(wait + rand.N(wait/2))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
		wait = min(2*wait, retryMax)
	}
}

// turn chooses the server for the next session, by why there is none with the
// last one.
func (a *Agent) turn(cause error) {
	elsewhere, named := errors.AsType[*ledElsewhere](cause)
	if !named {
		a.servers.next()
		return
	}
	if err := a.servers.follow(elsewhere.url); err != nil {
		a.log.Warn("the server that leads cannot be called", "server", elsewhere.url, "error", err)
		a.servers.next()
	}
}

// runSession opens one session and serves it to its end, or until life ends.
func (a *Agent) runSession(life context.Context, server *client.Client) error {
	ctx, end := context.WithCancelCause(life)
	defer end(nil)
	stream, err := server.Agent.Session(ctx)
	if err != nil {
		return err
	}
	defer stream.CloseResponse()
	hello, err := a.hello(ctx)
	if err != nil {
		return err
	}
	beat, err := a.greetWithin(ctx, end, stream, hello, welcomeWithin)
	if err != nil {
		return err
	}
	a.log.Info("session open", "host", a.config.Name)
	one := &session{
		queue: make(chan *godwitv1.SessionRequest, sessionQueue), addresses: make(chan *godwitv1.AddressMap, 1), end: end,
	}
	a.setSession(one)
	defer a.setSession(nil)
	for _, m := range a.all() {
		m.tellFacts()
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		end(one.write(ctx, stream, beat))
		_ = stream.CloseRequest() // see greetWithin
	})
	tasks.Go(func() { a.followAddresses(ctx, one) })
	tasks.Go(func() { a.followNetworks(ctx, one, wire.DecodeHostNetworks(hello.GetHost().GetNetworks())) })
	tasks.Go(func() { end(a.read(life, one, stream, missedBeats*beat)) })
	tasks.Wait()
	return context.Cause(ctx)
}

func (a *Agent) setSession(s *session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session = s
}

// read takes the server's messages until the stream ends, and ends the session
// when none has come for too long.
func (a *Agent) read(life context.Context, s *session, stream *stream, silenceMax time.Duration) error {
	watchdog := time.AfterFunc(silenceMax, func() { s.end(errors.New("nothing was heard of the server")) })
	defer watchdog.Stop()
	for {
		message, err := stream.Receive()
		if err != nil {
			return err
		}
		watchdog.Reset(silenceMax)
		a.hear(life, s, message)
	}
}

// write sends what is queued, and heartbeats, until ctx ends.
func (s *session) write(ctx context.Context, stream *stream, beat time.Duration) error {
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for {
		var message *godwitv1.SessionRequest
		select {
		case message = <-s.queue:
		case <-beats.C:
			message = &godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Heartbeat{Heartbeat: &godwitv1.Heartbeat{}}}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := stream.Send(message); err != nil {
			return err
		}
	}
}

// greetWithin greets, and gives up after the limit or with ctx, which end ends.
func (a *Agent) greetWithin(ctx context.Context, end context.CancelCauseFunc, stream *stream, hello *godwitv1.Hello, limit time.Duration) (time.Duration, error) {
	silence := time.AfterFunc(limit, func() { end(errors.New("the server does not answer Hello")) })
	defer silence.Stop()
	// HTTP/2 heeds the end of ctx only after the request's: without this
	// Receive would go on waiting for the server.
	stop := context.AfterFunc(ctx, func() { _ = stream.CloseRequest() })
	defer stop()
	beat, err := a.greet(stream, hello)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return beat, err
}

// greet says hello and gives the interval of heartbeats.
func (a *Agent) greet(stream *stream, hello *godwitv1.Hello) (time.Duration, error) {
	err := stream.Send(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Hello{Hello: hello}})
	if err != nil && !errors.Is(err, io.EOF) { // which means that Receive says why
		return 0, err
	}
	first, err := stream.Receive()
	if err != nil {
		return 0, err
	}
	welcome := first.GetWelcome()
	if welcome == nil {
		return 0, errors.New("the server's first message is not Welcome")
	}
	if leader := welcome.GetLeader(); leader != "" {
		return 0, &ledElsewhere{leader}
	}
	a.noteMark(welcome.GetStore())
	beat := min(welcome.GetHeartbeatMs(), maxBeatMs)
	if beat <= 0 {
		beat = defaultBeatMs
	}
	return time.Duration(beat) * time.Millisecond, nil
}

func (a *Agent) hello(ctx context.Context) (*godwitv1.Hello, error) {
	networks, err := a.config.Network.HostNetworks()
	if err != nil {
		return nil, err
	}
	hello := &godwitv1.Hello{
		Host: wire.EncodeHost(fleet.Host{
			Name: a.config.Name, Address: a.config.Address, PeerPort: a.config.Peers.port(), CPUs: a.config.CPUs, Memory: a.config.Memory,
			QEMU: a.features.Fleet(), Version: a.config.Version, Networks: networks,
		}, wire.HostStatus{}),
		BootId: a.config.BootID, Store: a.mark.Load(), Process: a.process, Machine: machineHash(),
	}
	for _, m := range a.all() {
		hello.Instances = append(hello.Instances, m.inventory(ctx))
	}
	return hello, nil
}

// machineHash tells machines apart. The id itself is to be kept on its machine
// (machine-id(5)).
func machineHash() string {
	id, err := os.ReadFile(machineIDFile)
	if err != nil || len(bytes.TrimSpace(id)) == 0 {
		return ""
	}
	sum := sha256.Sum256(append([]byte("godwit host "), bytes.TrimSpace(id)...))
	return hex.EncodeToString(sum[:16])
}

// hear takes one message of the server. It does not block: commands go to the
// queues of their machines, and are carried out as long as the agent lives.
func (a *Agent) hear(life context.Context, s *session, message *godwitv1.SessionResponse) {
	switch said := message.GetMessage().(type) {
	case *godwitv1.SessionResponse_Heartbeat:
		a.noteMark(said.Heartbeat.GetStore())
	case *godwitv1.SessionResponse_Command:
		if err := checkCommand(said.Command); err != nil {
			a.log.Error("a command is refused", "error", err)
			return
		}
		a.command(life, said.Command)
	case *godwitv1.SessionResponse_Addresses:
		select {
		case <-s.addresses: // overtaken before it was applied
		default:
		}
		s.addresses <- said.Addresses
	}
}
