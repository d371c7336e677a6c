package server

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// pipe listens for one connection, which has no buffers: what is not read is not
// written.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p pipe) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p pipe) Close() error {
	close(p.done)
	return nil
}

func (p pipe) Addr() net.Addr { return &net.UnixAddr{} }

// slow is the client's end of a connection, which waits before it reads on.
type slow struct {
	net.Conn
	wait  func(reads int) <-chan time.Time
	life  context.Context
	reads int
}

func (s *slow) Read(p []byte) (int, error) {
	s.reads++
	select {
	case <-s.wait(s.reads):
	case <-s.life.Done():
	}
	return s.Conn.Read(p[:min(len(p), 100)])
}

// answer serves one call by HTTP/2, and gives what its client has read, and how
// long the handler took. Both are over then.
func answer(t *testing.T, handler http.HandlerFunc, wait func(reads int) <-chan time.Time) (text []byte, took time.Duration) {
	t.Helper()
	listener := pipe{make(chan net.Conn, 1), make(chan struct{})}
	ended := make(chan time.Duration)
	s := &Server{log: slog.New(slog.DiscardHandler)}
	server := s.httpServer(t.Context(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		handler(w, r)
		ended <- time.Since(began)
	}))
	server.Protocols = new(http.Protocols)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	transport := &http.Transport{Protocols: server.Protocols, DialContext: func(context.Context, string, string) (net.Conn, error) {
		conn, own := net.Pipe()
		listener.conns <- own
		return &slow{Conn: conn, wait: wait, life: t.Context()}, nil
	}}
	defer transport.CloseIdleConnections()
	read := make(chan []byte, 1)
	go func() {
		response, err := (&http.Client{Transport: transport}).Get("http://server/")
		if err != nil {
			read <- nil
			return
		}
		text, _ := io.ReadAll(response.Body)
		read <- text
	}()
	took = <-ended
	return <-read, took
}

// sendMany writes until it can't any more, or has written it all.
func sendMany(w http.ResponseWriter, _ *http.Request) {
	for range 40 {
		if _, err := w.Write(make([]byte, 1000)); err != nil {
			return
		}
		if http.NewResponseController(w).Flush() != nil {
			return
		}
	}
}

const sentByMany = 40 * 1000

// A client that stops to read is cut off; its handler goes on no longer.
func TestClientThatStopsToRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text, took := answer(t, sendMany, func(reads int) <-chan time.Time {
			if reads < 20 {
				return time.After(0)
			}
			return time.After(time.Hour) // of virtual time
		})
		if took > 2*stuckMax || len(text) == sentByMany {
			t.Errorf("its handler took %v, and it has read %d bytes", took, len(text))
		}
	})
}

// One that reads slowly is not.
func TestClientThatReadsSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text, took := answer(t, sendMany, func(int) <-chan time.Time { return time.After(time.Second) })
		if len(text) != sentByMany || took < 3*stuckMax {
			t.Errorf("it has read %d of %d bytes in %v", len(text), sentByMany, took)
		}
	})
}

// A stream on which nothing is said for hours lives.
func TestQuietStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const quiet = 5 * time.Hour
		text, took := answer(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(quiet): // of virtual time
			case <-r.Context().Done():
			}
			_, _ = io.WriteString(w, "done")
		}, func(int) <-chan time.Time { return time.After(0) })
		if string(text) != "done" || took < quiet {
			t.Errorf("after %v it has read %q", took, text)
		}
	})
}
