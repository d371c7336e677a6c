package lab

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// timed sends so many bytes from one host to another and tells how long they took.
func timed(t *testing.T, l *Lab, from, to string, bytes int64) time.Duration {
	t.Helper()
	address := netip.AddrPortFrom(l.Host(to).Addr, 9).String()
	listener, err := l.Host(to).Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := l.Host(from).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = conn.Write(make([]byte, bytes)) // what is missing the reader sees
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	other, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	began := time.Now()
	if n, err := io.Copy(io.Discard, other); n != bytes || err != nil {
		t.Fatalf("%d of %d bytes arrived, %v", n, bytes, err)
	}
	defer conn.Close()
	return time.Since(began)
}

// A cap holds for what a host sends, and is replaced by the next.
func TestCap(t *testing.T) {
	l := newLab(t, "h1", "h2")
	for _, rate := range []fleet.BytesPerSecond{20e6, 60e6} {
		if err := l.Cap("h1", rate); err != nil {
			t.Fatal(err)
		}
		bytes := int64(rate / 2)
		least := time.Duration(float64(bytes-capBurst) / float64(rate) * 1e9)
		if took := timed(t, l, "h1", "h2", bytes); took < least*9/10 {
			t.Errorf("%d bytes at %v took %v, want at least %v", bytes, rate, took, least)
		}
	}
	if err := l.Cap("h9", 1e6); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("no such host: %v", err)
	}
}
