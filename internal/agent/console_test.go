package agent

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/bootsector"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// asPeer gives a client of a host's agent.
func (h *testHost) asPeer(caller pki.Identity) *client.Peer {
	h.t.Helper()
	c, err := client.DialPeer(client.Config{
		Server: "https://" + netip.AddrPortFrom(h.space.Addr, testPeerPort).String(),
		TLS:    h.fleet.keeper(caller).ClientConfig(pki.Expect{Kind: pki.Host, Name: h.name}),
		Dial: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = h.space.Do(func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(c.Close)
	return c
}

// console gives a client of a host's consoles.
func (h *testHost) console(caller pki.Identity) godwitv1connect.ConsoleServiceClient {
	h.t.Helper()
	return h.asPeer(caller).Console
}

// listener gathers what a console says.
type listener struct {
	t      *testing.T
	stream interface {
		Receive() bool
		Msg() *godwitv1.ReadConsoleResponse
		Err() error
	}
	said   string
	offset uint64
}

func listen(t *testing.T, c godwitv1connect.ConsoleServiceClient, request *godwitv1.ReadConsoleRequest) *listener {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	request.Vm, request.Epoch, request.Uid = testVM, 1, testUID
	stream, err := c.Read(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	return &listener{t: t, stream: stream}
}

// next takes one message; false at the end.
func (l *listener) next() bool {
	l.t.Helper()
	if !l.stream.Receive() {
		if err := l.stream.Err(); err != nil {
			l.t.Errorf("after %q: %v", l.said, err)
		}
		return false
	}
	l.said += string(l.stream.Msg().GetOutput())
	l.offset = l.stream.Msg().GetOffset()
	return true
}

func (l *listener) await(text string) {
	l.t.Helper()
	for !strings.Contains(l.said, text) {
		if !l.next() {
			l.t.Fatalf("it ended with %q, without %q", l.said, text)
		}
	}
}

func typing(t *testing.T, c godwitv1connect.ConsoleServiceClient, text string) {
	t.Helper()
	_, err := c.Write(t.Context(), &godwitv1.WriteConsoleRequest{Vm: testVM, Epoch: 1, Uid: testUID, Input: []byte(text)})
	if err != nil {
		t.Fatalf("type %q: %v", text, err)
	}
}

// Two look at a console and one types; the agent starts anew, and what was said
// meanwhile is there; both see the end.
func TestConsole(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Echoing()))
	c := h.console(pki.Identity{Kind: pki.Server, Name: "s1"})
	first := listen(t, c, &godwitv1.ReadConsoleRequest{Follow: true})
	first.await("!")
	typing(t, c, "hello")
	first.await("!hello")
	typing(t, c, " world") // by the same connection to QEMU
	first.await("!hello world")

	h.stop()
	h.start()
	typing(t, c, "; again")
	later := listen(t, c, &godwitv1.ReadConsoleRequest{Offset: first.offset, Follow: true})
	later.await("again")
	if want := "; again"; later.said != want {
		t.Errorf("from where it was left: %q, want %q", later.said, want)
	}
	last := listen(t, c, &godwitv1.ReadConsoleRequest{Last: new(uint64(5))})
	for last.next() {
	}
	if want := "again"; last.said != want {
		t.Errorf("the last 5 bytes: %q, want %q", last.said, want)
	}
	h.do(stopCommand(2, 1, 0))
	for later.next() {
		t.Errorf("after its end: %q", later.said)
	}
	h.checkNothingLeft()
}

func TestConsoleRefusals(t *testing.T) {
	f, hosts := newFleet(t, "h1")
	h := hosts[0]
	h.run(booting(t, f, 1, bootsector.Echoing()))
	read := func(caller pki.Identity, request *godwitv1.ReadConsoleRequest) error {
		stream, err := h.console(caller).Read(t.Context(), request)
		if err != nil {
			return err
		}
		defer stream.Close()
		for stream.Receive() {
		}
		return stream.Err()
	}
	server := pki.Identity{Kind: pki.Server, Name: "s1"}
	for _, test := range []struct {
		name    string
		caller  pki.Identity
		request *godwitv1.ReadConsoleRequest
		want    fleet.Code
	}{
		{"a server", server, &godwitv1.ReadConsoleRequest{Vm: testVM, Epoch: 1, Uid: testUID}, ""},
		{"another host", pki.Identity{Kind: pki.Host, Name: "h2"}, &godwitv1.ReadConsoleRequest{Vm: testVM, Epoch: 1, Uid: testUID}, fleet.Denied},
		{"another epoch", server, &godwitv1.ReadConsoleRequest{Vm: testVM, Epoch: 2, Uid: testUID}, fleet.NotFound},
		{"another VM of that name", server, &godwitv1.ReadConsoleRequest{Vm: testVM, Epoch: 1, Uid: "u2"}, fleet.NotFound},
	} {
		if err := read(test.caller, test.request); fleet.CodeOf(err) != test.want {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
	tooMuch := &godwitv1.WriteConsoleRequest{Vm: testVM, Epoch: 1, Uid: testUID, Input: make([]byte, wire.TypeMax+1)}
	if _, err := h.console(server).Write(t.Context(), tooMuch); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("too much at once: %v", err)
	}
}
