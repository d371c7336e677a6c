package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/pki"
)

// pipes listens for connections without buffers: what is not read is not written.
type pipes struct {
	accept chan net.Conn
	done   chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.accept:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error {
	close(p.done)
	return nil
}

func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// watched says when the agent has closed its end.
type watched struct {
	net.Conn
	closed chan struct{}
}

func (w watched) Close() error {
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return w.Conn.Close()
}

// dial gives the other end of a new connection.
func (p pipes) dial() (conn net.Conn, closed chan struct{}) {
	conn, own := net.Pipe()
	closed = make(chan struct{})
	p.accept <- watched{own, closed}
	return conn, closed
}

// secure dials and has one call answered, so that nothing of the handshake waits
// to be read.
func (p pipes) secure(t *testing.T) (conn net.Conn, closed chan struct{}) {
	raw, closed := p.dial()
	conn = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}) // the certificate is not what is tested
	if _, err := io.WriteString(conn, peerCall+"Content-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(answer.Body); err != nil || !strings.Contains(string(text), "permission_denied") {
		t.Fatalf("answered with %q, %v", text, err)
	}
	return conn, closed
}

const peerCall = "POST /godwit.v1.PeerService/GiveUp HTTP/1.1\r\nHost: h2\r\nContent-Type: application/proto\r\n"

// drip sends a byte a second until the other end is closed.
func drip(conn net.Conn, closed chan struct{}, text string) {
	for _, b := range []byte(text) {
		select {
		case <-time.After(time.Second): // of virtual time
		case <-closed:
			return
		}
		if _, err := conn.Write([]byte{b}); err != nil {
			return
		}
	}
}

// Who connects to the port for other hosts and does not go on is let go of, and
// keeps nobody else from being answered.
func TestPeersThatStall(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for name, stall := range map[string]func(*testing.T, pipes) chan struct{}{
		"says nothing": func(_ *testing.T, p pipes) chan struct{} {
			_, closed := p.dial()
			return closed
		},
		"greets a byte a second": func(_ *testing.T, p pipes) chan struct{} {
			conn, closed := p.dial()
			go drip(conn, closed, "\x16\x03\x01\x10\x00"+long)
			return closed
		},
		"is idle": func(t *testing.T, p pipes) chan struct{} {
			_, closed := p.secure(t)
			return closed
		},
		"calls a byte a second": func(t *testing.T, p pipes) chan struct{} {
			conn, closed := p.secure(t)
			go drip(conn, closed, peerCall+"X: "+long)
			return closed
		},
		"says what it wants a byte a second": func(t *testing.T, p pipes) chan struct{} {
			conn, closed := p.secure(t)
			go func() {
				_, _ = io.WriteString(conn, peerCall+"Content-Length: 1000\r\n\r\n")
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				drip(conn, closed, long)
			}()
			return closed
		},
		"does not read the answer": func(t *testing.T, p pipes) chan struct{} {
			conn, closed := p.secure(t)
			if _, err := io.WriteString(conn, peerCall+"Content-Length: 0\r\n\r\n"); err != nil {
				t.Error(err)
			}
			return closed
		},
		"reads nothing any more, by HTTP/2": func(t *testing.T, p pipes) chan struct{} {
			raw, closed := p.dial()
			conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
			const settings, ping = "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x08\x06\x00\x00\x00\x00\x00" + "12345678"
			if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, len(settings))); err != nil { // the head of the server's
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, ping); err != nil {
				t.Fatal(err)
			}
			return closed
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { checkStall(t, stall) }) })
	}
}

func checkStall(t *testing.T, stall func(*testing.T, pipes) chan struct{}) {
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	keeper := (&fakeServer{t: t, authority: authority}).keeper(pki.Identity{Kind: pki.Host, Name: "h2"})
	listener := pipes{make(chan net.Conn), make(chan struct{})}
	a := &Agent{config: Config{Keeper: keeper, Peers: Peers{Listener: listener}}, log: slog.New(slog.DiscardHandler)}
	go a.servePeers(t.Context())
	closed := stall(t, listener)
	other, _ := listener.secure(t)
	_ = other.Close()
	select {
	case <-closed:
	case <-time.After(time.Hour): // of virtual time
		t.Error("it is held for an hour")
	}
}

// Frames wait while the link to the other host is cut, but not for ever. That
// nobody listens there is as good as a connection.
func TestAwaitPath(t *testing.T) {
	for name, test := range map[string]struct {
		healed time.Duration // after the start
		answer error
		want   time.Duration
	}{
		"whole":                     {0, nil, 0},
		"whole, but nobody listens": {0, &net.OpError{Op: "dial", Err: unix.ECONNREFUSED}, 0},
		"cut for a while":           {3 * time.Second, nil, 3 * time.Second},
		"cut for ever":              {time.Hour, nil, pathWithin},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				a := &Agent{log: slog.New(slog.DiscardHandler)}
				a.config.Peers.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
					if address != "10.0.0.1:7444" {
						t.Errorf("dials %s", address)
					}
					if time.Since(begun) < test.healed {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					if test.answer != nil {
						return nil, test.answer
					}
					conn, other := net.Pipe()
					other.Close()
					return conn, nil
				}
				a.awaitPath(t.Context(), "10.0.0.1:7444")
				if waited := time.Since(begun); waited < test.want || waited > test.want+pathTry+pathEvery {
					t.Errorf("waited for %v, want %v", waited, test.want)
				}
			})
		})
	}
}
