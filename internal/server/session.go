package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

const (
	sessionQueue = 256 // messages each way
	// messageMax bounds a message that follows Hello, in bytes. What is queued
	// of a session takes no more than sessionQueue of them.
	messageMax = 64 << 10
	// complaintsMax is how often an agent may say what it must not in one
	// session. Some of it can be news of what is long over.
	complaintsMax = 100
	// missedBeats is how many heartbeats may be missing before a host is down.
	missedBeats = 3
	// farewell bounds the sending of what is on its way when a session ends.
	farewell = time.Second
)

// messageStream is the stream of a session, as Connect gives it.
type messageStream interface {
	Receive() (*godwitv1.SessionRequest, error)
	Send(*godwitv1.SessionResponse) error
}

// session is one stream with one agent.
type session struct {
	host   fleet.HostName
	agent  string // the process that speaks; "" if it does not say
	from   string // its address
	began  time.Time
	number uint64
	beat   time.Duration
	mark   func() *godwitv1.StoreMark // the present one

	queue     chan *godwitv1.SessionResponse
	addresses chan *godwitv1.AddressMap // the newest only

	signs    chan struct{} // of life: a message has come
	ended    chan struct{} // the session is to end
	finished chan struct{} // it has ended and its last report was handled
	once     sync.Once
	cause    error // written before ended is closed

	complaints int // of what was said; the handler's only
}

func newSession(host fleet.HostName, beat time.Duration) *session {
	return &session{
		host: host, beat: beat, mark: func() *godwitv1.StoreMark { return nil }, began: time.Now(), signs: make(chan struct{}, 1),
		queue:     make(chan *godwitv1.SessionResponse, sessionQueue),
		addresses: make(chan *godwitv1.AddressMap, 1),
		ended:     make(chan struct{}), finished: make(chan struct{}),
	}
}

// end makes the session end with the first cause given.
func (s *session) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.ended)
	})
}

// isOf tells whether the session may be that agent's.
func (s *session) isOf(agent string) bool {
	return s.agent == "" || agent == "" || s.agent == agent
}

// outlive returns when the session has finished. Conflict if its agent, which
// sends heartbeats, is heard of before that.
func (s *session) outlive(ctx context.Context) error {
	select {
	case <-s.signs: // it came before anybody asked
	default:
	}
	select {
	case <-s.finished:
		return nil
	case <-s.signs:
	case <-ctx.Done():
		return ctx.Err()
	}
	return &fleet.Error{
		Code: fleet.Conflict, Op: "open session", Subject: "host " + string(s.host),
		Cause: fmt.Sprintf("another agent runs this host: it calls from %s, since %s", s.from, s.began.UTC().Format(time.RFC3339)),
		Hint:  "one agent runs a host; if this one has a copy of its folder or certificate, stop it and enrol it under a name of its own: godwit host token NAME",
	}
}

func (s *session) send(message *godwitv1.SessionResponse) error {
	select {
	case s.queue <- message:
		return nil
	default:
		return &fleet.Error{
			Code: fleet.Exhausted, Op: "command", Subject: "host " + string(s.host),
			Cause: fmt.Sprintf("%d messages wait for it already", sessionQueue),
		}
	}
}

// sendAddresses has one caller at a time.
func (s *session) sendAddresses(addresses *godwitv1.AddressMap) {
	select {
	case <-s.addresses: // overtaken before it was sent
	default:
	}
	s.addresses <- addresses
}

// complain counts what the agent must not say, and ends the session when it goes
// on with that.
func (s *session) complain(last error) {
	if s.complaints++; s.complaints >= complaintsMax {
		s.end(&fleet.Error{
			Code: fleet.Invalid, Op: "keep session", Subject: "host " + string(s.host),
			Cause: fmt.Sprintf("it said %d times what it must not", s.complaints),
			Hint:  agentHint, Err: last,
		})
	}
}

// agentHint is what to do about a host that does not speak as an agent does.
const agentHint = "see that godwit agent, of this server's version or the one before, is what runs there with the host's certificate"

// serve runs the session until it ends and gives the reason. handle is called
// for one message after the other. deadlines unblocks the stream.
func (s *session) serve(ctx context.Context, stream messageStream, deadlines *http.ResponseController, handle func(*godwitv1.SessionRequest)) error {
	stop := context.AfterFunc(ctx, func() { s.end(ctx.Err()) })
	defer stop()
	inbox := make(chan *godwitv1.SessionRequest, sessionQueue)
	var reader, writer sync.WaitGroup
	reader.Go(func() { s.read(stream, inbox) })
	writer.Go(func() { s.write(stream) })
	for running := true; running; {
		select {
		case message := <-inbox:
			handle(message)
		case <-s.ended:
			running = false
		}
	}
	// The stream may be used only while the handler runs, so both must be
	// done first. A deadline is what frees them from a peer that is silent
	// or does not read.
	late := time.AfterFunc(farewell, func() { _ = deadlines.SetWriteDeadline(time.Now()) })
	writer.Wait()
	late.Stop()
	_ = deadlines.SetReadDeadline(time.Now())
	reader.Wait()
	return s.cause
}

// read hands on what the agent sends, heartbeats aside, and ends the session
// when it hears nothing for too long.
func (s *session) read(stream messageStream, inbox chan<- *godwitv1.SessionRequest) {
	silence := missedBeats * s.beat
	watchdog := time.AfterFunc(silence, func() {
		s.end(&fleet.Error{
			Code: fleet.Deadline, Op: "keep session", Subject: "host " + string(s.host),
			Cause: fmt.Sprintf("nothing was heard of it for %v", silence),
		})
	})
	defer watchdog.Stop()
	for {
		message, err := stream.Receive()
		if err == nil {
			err = checkMessage(message)
		}
		if err != nil {
			s.end(endOfStream(s.host, err))
			return
		}
		select {
		case s.signs <- struct{}{}:
		default: // nobody has asked for the one before
		}
		if message.GetHeartbeat() == nil {
			// While the handlers are behind it is not the host that is slow.
			watchdog.Stop()
			select {
			case inbox <- message:
			case <-s.ended:
				return
			}
		}
		watchdog.Reset(silence)
	}
}

// checkMessage refuses what no agent sends.
func checkMessage(message *godwitv1.SessionRequest) error {
	if size := proto.Size(message); size > messageMax {
		return fmt.Errorf("a message has %d bytes, more than %d", size, messageMax)
	}
	return nil
}

// checkNames refuses a report of what can't be, before it is looked for.
func checkNames(report *godwitv1.Report) error {
	names := []string{report.GetSubject()}
	if instance := report.GetInstance(); instance != nil {
		names = append(names, instance.GetVm())
	}
	for _, name := range names {
		if err := fleet.CheckName(wire.Bounded(name)); err != nil {
			return &fleet.Error{Code: fleet.Invalid, Op: "read report", Cause: "what it is of cannot be", Err: err}
		}
	}
	return nil
}

// endOfStream is why a session ends with an error of its stream: nil when the
// agent ended it, Invalid when what it sent cannot be read.
func endOfStream(host fleet.HostName, err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	if broken, is := errors.AsType[*connect.Error](err); is {
		switch broken.Code() {
		case connect.CodeInvalidArgument, connect.CodeResourceExhausted, connect.CodeInternal:
		default:
			return err
		}
	}
	return &fleet.Error{
		Code: fleet.Invalid, Op: "keep session", Subject: "host " + string(host),
		Cause: "what it sent cannot be read", Hint: agentHint, Err: err,
	}
}

func (s *session) write(stream messageStream) {
	beats := time.NewTicker(s.beat)
	defer beats.Stop()
	for {
		var message *godwitv1.SessionResponse
		select {
		case message = <-s.queue:
		case addresses := <-s.addresses:
			message = &godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Addresses{Addresses: addresses}}
		case <-beats.C:
			message = &godwitv1.SessionResponse{Message: &godwitv1.SessionResponse_Heartbeat{Heartbeat: &godwitv1.Heartbeat{Store: s.mark()}}}
		case <-s.ended:
			return
		}
		if err := stream.Send(message); err != nil {
			s.end(err)
			return
		}
	}
}
