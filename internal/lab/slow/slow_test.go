package slow_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"godwit.dev/godwit/internal/lab/slow"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// TestLink sends something over a link and back, at first fast, then slow, and
// breaks and closes it in the middle.
func TestLink(t *testing.T) {
	echo := listen(t)
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	defer echo.Close()
	near := listen(t)
	link := slow.New(near, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", echo.Addr().String())
	})
	conn, err := net.Dial("tcp", near.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, delay := range []time.Duration{0, 50 * time.Millisecond} {
		link.Delay(delay)
		began := time.Now()
		if _, err := conn.Write([]byte("there and back")); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, len("there and back"))
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "there and back" {
			t.Errorf("back came %q, %v", answer, err)
		}
		if took := time.Since(began); took < 2*delay {
			t.Errorf("it took %v, with a delay of %v", took, delay)
		}
	}
	link.Break()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("a connection outlives its link's break: %d bytes", n)
	}
	second, err := net.Dial("tcp", near.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := link.Close(); err != nil {
		t.Error(err)
	}
	if n, err := second.Read(make([]byte, 1)); err == nil {
		t.Errorf("a connection outlives its link: %d bytes", n)
	}
}
