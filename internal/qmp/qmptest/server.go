package qmptest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"godwit.dev/godwit/internal/qmp"
)

// Handler executes one command: it gives the value to return, or an error. An
// *qmp.Error keeps its class. It may block, which is how QEMU is slow.
type Handler func(args json.RawMessage) (any, error)

// Call is a command that was received.
type Call struct {
	Command string
	Args    json.RawMessage
	OOB     bool
}

// Server is the fake QEMU.
type Server struct {
	path     string
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex
	greeting string
	twice    bool // greets the next connection twice
	handlers map[string]Handler
	calls    []Call
	conn     net.Conn // the connection being served, nil for none
	closed   bool
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "fake"}, "capabilities": ["oob"]}}`

// New starts a fake QEMU on a socket of its own.
func New(t testing.TB) *Server {
	t.Helper()
	// Not t.TempDir: it holds the test's name, and socket paths are short.
	dir, err := os.MkdirTemp("", "qmptest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "qmp.sock")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{path: path, listener: listener, greeting: greeting, handlers: make(map[string]Handler)}
	s.running.Go(s.accept)
	t.Cleanup(s.Close)
	return s
}

// Path gives the socket to dial.
func (s *Server) Path() string { return s.path }

// SetGreeting replaces the first line of later connections; "" sends none.
func (s *Server) SetGreeting(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.greeting = line
}

// GreetTwice has the next connection greeted twice, as QEMU does if a client
// connects while the monitor moves to its own thread.
func (s *Server) GreetTwice() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.twice = true
}

// Handle sets what executes the command.
func (s *Server) Handle(command string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[command] = h
}

// Reply lets the command return the value.
func (s *Server) Reply(command string, value any) {
	s.Handle(command, func(json.RawMessage) (any, error) { return value, nil })
}

// Refuse lets the command fail with a generic error.
func (s *Server) Refuse(command, desc string) {
	s.Handle(command, func(json.RawMessage) (any, error) { return nil, errors.New(desc) })
}

// Hold lets the command wait for release before it returns an empty object,
// and closes held when one has arrived. release may be called once.
func (s *Server) Hold(command string) (held <-chan struct{}, release func()) {
	arrived, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.Handle(command, func(json.RawMessage) (any, error) {
		once.Do(func() { close(arrived) })
		<-let
		return struct{}{}, nil
	})
	return arrived, func() { close(let) }
}

// Calls gives the commands received so far, without qmp_capabilities.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// Emit sends an event with the time of now.
func (s *Server) Emit(name string, data any) { s.EmitAt(time.Now(), name, data) }

// EmitAt sends an event with the given time, whole microseconds of it.
func (s *Server) EmitAt(at time.Time, name string, data any) {
	event := map[string]any{
		"event":     name,
		"timestamp": map[string]int64{"seconds": at.Unix(), "microseconds": int64(at.Nanosecond() / 1000)},
	}
	if data != nil {
		event["data"] = data
	}
	line, err := json.Marshal(event)
	if err != nil {
		panic(fmt.Sprintf("qmptest: event %s: %v", name, err))
	}
	s.WriteRaw(append(line, '\n'))
}

// WriteRaw sends bytes as they are: garbage, halves of lines, lines too long.
func (s *Server) WriteRaw(text []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_, _ = s.conn.Write(text) // a client that has gone is part of the test
	}
}

// Disconnect closes the present connection, as a QEMU that dies does.
func (s *Server) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
	}
}

// Close ends the server; held commands must have been released.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.listener.Close()
	if s.conn != nil {
		s.conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		if s.begin(conn) {
			s.serve(conn)
		}
		conn.Close()
	}
}

// begin makes conn the present connection and greets it.
func (s *Server) begin(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.conn = conn
	if s.greeting == "" {
		return true
	}
	text := s.greeting + "\n"
	if s.twice {
		text, s.twice = text+text, false
	}
	_, err := conn.Write([]byte(text))
	return err == nil
}

type request struct {
	Execute   string          `json:"execute"`
	ExecOOB   string          `json:"exec-oob"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// serve takes commands until the connection ends.
func (s *Server) serve(conn net.Conn) {
	var workers sync.WaitGroup
	inBand := make(chan request, 64)
	defer workers.Wait()
	defer close(inBand)
	workers.Go(func() {
		negotiated := false
		for r := range inBand {
			s.answer(r, &negotiated)
		}
	})
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			s.write(map[string]any{"error": map[string]string{"class": "GenericError", "desc": "JSON parse error"}})
			continue
		}
		if r.ExecOOB != "" {
			yes := true
			workers.Go(func() { s.answer(r, &yes) })
			continue
		}
		inBand <- r
	}
}

func (s *Server) answer(r request, negotiated *bool) {
	command := r.Execute + r.ExecOOB
	value, err := any(struct{}{}), error(nil)
	switch {
	case command == "qmp_capabilities":
		*negotiated = true
	case !*negotiated:
		err = &qmp.Error{Class: qmp.ClassCommandNotFound, Desc: "Expecting capabilities negotiation with 'qmp_capabilities'"}
	default:
		value, err = s.execute(command, r)
	}
	reply := map[string]any{"id": r.ID}
	if err == nil {
		reply["return"] = value
	} else if refusal, ok := errors.AsType[*qmp.Error](err); ok {
		reply["error"] = map[string]string{"class": string(refusal.Class), "desc": refusal.Desc}
	} else {
		reply["error"] = map[string]string{"class": string(qmp.ClassGeneric), "desc": err.Error()}
	}
	s.write(reply)
}

func (s *Server) execute(command string, r request) (any, error) {
	s.mu.Lock()
	s.calls = append(s.calls, Call{Command: command, Args: r.Arguments, OOB: r.ExecOOB != ""})
	handler := s.handlers[command]
	s.mu.Unlock()
	if handler == nil {
		return nil, &qmp.Error{Class: qmp.ClassCommandNotFound, Desc: "The command " + command + " has not been found"}
	}
	return handler(r.Arguments)
}

func (s *Server) write(reply map[string]any) {
	line, err := json.Marshal(reply)
	if err != nil {
		panic(fmt.Sprintf("qmptest: reply: %v", err))
	}
	s.WriteRaw(append(line, '\n'))
}
