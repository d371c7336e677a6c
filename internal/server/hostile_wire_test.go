package server

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/pki"
)

// said keeps what a server logs.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(line)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// rawSession is a session whose bytes the test writes.
type rawSession struct {
	t      *testing.T
	body   *io.PipeWriter
	answer chan []byte // all that the server says, at the end
}

// rawSession opens one with the certificate of a host.
func (f *testFleet) rawSession(host string) *rawSession {
	f.t.Helper()
	body, writer := io.Pipe()
	request, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, f.url()+"/godwit.v1.AgentService/Session", body)
	if err != nil {
		f.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/connect+proto")
	request.Header.Set("Connect-Protocol-Version", "1")
	client := f.client(f.clientConfig(f.keeper(pki.Identity{Kind: pki.Host, Name: host}, 0)))
	s := &rawSession{t: f.t, body: writer, answer: make(chan []byte, 1)}
	f.t.Cleanup(func() { writer.Close() })
	go func() {
		response, err := client.Do(request)
		if err != nil {
			s.answer <- []byte(err.Error())
			return
		}
		defer response.Body.Close()
		text, _ := io.ReadAll(response.Body) // it may be cut off
		s.answer <- text
	}()
	return s
}

// envelope frames a message, as long as it says or not.
func envelope(flags byte, length uint32, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, length), payload...)
}

func enveloped(f *testFleet, message proto.Message) []byte {
	f.t.Helper()
	payload, err := proto.Marshal(message)
	if err != nil {
		f.t.Fatal(err)
	}
	return envelope(0, uint32(len(payload)), payload)
}

// write gives up when the server has closed the stream.
func (s *rawSession) write(parts ...[]byte) {
	for _, part := range parts {
		if _, err := s.body.Write(part); err != nil {
			return
		}
	}
}

func (s *rawSession) end() string {
	s.t.Helper()
	select {
	case text := <-s.answer:
		return string(text)
	case <-time.After(patience):
		s.t.Fatal("the server keeps the session")
	}
	return ""
}

func helloOf(host string) *godwitv1.SessionRequest {
	return &godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Hello{Hello: &godwitv1.Hello{Host: testHost(host), BootId: "boot-1"}}}
}

func reportOf(report *godwitv1.Report) *godwitv1.SessionRequest {
	return &godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Report{Report: report}}
}

// Whatever comes from a host with a good certificate, the server says what was
// wrong, to it and in its log, and ends that session; a migration of others goes
// on to its end.
func TestGarbageFromAHost(t *testing.T) {
	t.Parallel()
	log := &said{}
	f := newFleet(t, func(c *Config) {
		c.Logger, c.Heartbeat = slog.New(slog.NewTextHandler(log, nil)), 500*time.Millisecond
	})
	h1, h2 := f.join("h1"), f.join("h2")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	foreign := enveloped(f, reportOf(&godwitv1.Report{
		Subject: fl.id, Epoch: 1, Event: &godwitv1.Report_SourceFailed{SourceFailed: &godwitv1.SourceFailed{Cause: "I say so", Gone: true}},
	}))
	hello, big := enveloped(f, helloOf("h3")), bytes.Repeat([]byte{'x'}, maxHelloBytes+1)
	longReport := enveloped(f, reportOf(&godwitv1.Report{Subject: "web1", Event: &godwitv1.Report_Instance{
		Instance: &godwitv1.InstanceReport{Vm: "web1", Cause: string(big[:messageMax])},
	}}))
	cases := []struct {
		name  string
		bytes [][]byte
		says  string
	}{
		{"garbage for Hello", [][]byte{envelope(0, 6, []byte("\xff\xff\xff\xff\xff\xff"))}, "cannot be read"},
		{"no Hello", [][]byte{foreign}, "not Hello"},
		{"a Hello of a megabyte", [][]byte{envelope(0, uint32(len(big)), big)}, "cannot be read"},
		{"a message of no known kind for ever", [][]byte{hello, bytes.Repeat(envelope(0, 0, nil), complaintsMax)}, "what it must not"},
		{"garbage after Hello", [][]byte{hello, envelope(0, 5, []byte("\x12\xff\xff\xff\xff"))}, "cannot be read"},
		{"a length beyond all bounds", [][]byte{hello, envelope(0, 1<<32-1, big)}, "nothing was heard"},
		{"compressed by nobody knows what", [][]byte{hello, envelope(1, 3, []byte("abc"))}, "cannot be read"},
		{"a report that is too long", [][]byte{hello, longReport}, "more than 65536"},
		{"a second Hello for ever", [][]byte{hello, bytes.Repeat(hello, complaintsMax)}, "what it must not"},
		{"the end of a migration of others", [][]byte{hello, bytes.Repeat(foreign, complaintsMax)}, "not its source"},
	}
	for _, test := range cases {
		s := f.rawSession("h3")
		s.write(test.bytes...)
		if text := s.end(); !strings.Contains(text, test.says) {
			t.Errorf("%s: the host was told %q, want %q", test.name, text, test.says)
		}
		if all := log.String(); !strings.Contains(all, test.says) {
			t.Errorf("%s: the log does not say %q", test.name, test.says)
		}
		*log = said{}
	}
	truncated := f.rawSession("h3")
	truncated.write(hello, envelope(0, 100, []byte("abc")))
	truncated.body.Close()
	truncated.end()
	if fl.record().State != migration.Copying {
		t.Fatalf("the migration of the others is %s", fl.record().State)
	}
	fl.finish(inCopy)
	fl.atTarget(t)
}

// A host that says more than can be dealt with waits; others do not, and memory
// stays bounded.
func TestFloodFromAHost(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1, h2, h3 := f.join("h1"), f.join("h2"), f.join("h3")
	fl := f.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)
	f.running(h3, "noisy")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	long := strings.Repeat("x", messageMax-1000)
	flood := make(chan struct{})
	go func() {
		defer close(flood)
		for range 2000 {
			h3.say(reportOf(&godwitv1.Report{Subject: "noisy", Epoch: 1, Event: &godwitv1.Report_Instance{
				Instance: &godwitv1.InstanceReport{Vm: "noisy", Epoch: 1, State: "running", Cause: long},
			}}))
		}
	}()
	fl.finish(inCopy)
	fl.atTarget(t)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := fleet.Bytes(after.HeapAlloc) - min(fleet.Bytes(before.HeapAlloc), fleet.Bytes(after.HeapAlloc)); grown > 100*fleet.MiB {
		t.Errorf("the server has grown by %v", grown)
	}
	<-flood
	f.settled(h3) // it was heard to the end
}

// What is no HTTP, or no TLS, ends that connection.
func TestGarbageOnTheWire(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	h1 := f.join("h1")
	config := f.clientConfig(f.keeper(pki.Identity{Kind: pki.Host, Name: "h2"}, 0))
	config.NextProtos = []string{"h2"}
	preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	for name, text := range map[string]string{
		"noise":                        strings.Repeat("\x00\xff\x16\x03", 1000),
		"a preface and a huge frame":   preface + "\xff\xff\xff\x04\x00\x00\x00\x00\x00",
		"a preface and a broken frame": preface + "\x00\x00\x06\x04\x00\x00\x00\x00\x00abcdef" + "\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
	} {
		conn, err := tls.Dial("tcp", f.server.Addr().String(), config)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, text)
		if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(fmt.Sprint(err), "timeout") {
			t.Errorf("%s: the connection is kept", name)
		}
		conn.Close()
	}
	f.running(h1, "web1") // in the session that was there before
}
