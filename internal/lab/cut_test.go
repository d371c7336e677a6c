package lab

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// endpoint is a socket for datagrams on a host.
func endpoint(t *testing.T, l *Lab, host string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	err := l.Host(host).Do(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.Host(host).Addr, 9)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// arrives sends a datagram between two hosts, and waits for it.
func arrives(t *testing.T, l *Lab, from, to *net.UDPConn) bool {
	t.Helper()
	if _, err := from.WriteTo([]byte("hello"), to.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, _, err := to.ReadFrom(make([]byte, 16))
	return err == nil
}

func TestCutIsOneWay(t *testing.T) {
	l := newLab(t, "h1", "h2")
	one, other := endpoint(t, l, "h1"), endpoint(t, l, "h2")
	want := func(when string, there, back bool) {
		t.Helper()
		if got := arrives(t, l, one, other); got != there {
			t.Errorf("%s: h1 to h2 arrives: %v", when, got)
		}
		if got := arrives(t, l, other, one); got != back {
			t.Errorf("%s: h2 to h1 arrives: %v", when, got)
		}
	}
	want("before", true, true)
	cut, err := l.Cut("h1", "h2", AllTraffic)
	if err != nil {
		t.Fatal(err)
	}
	want("cut", false, true)
	second, err := l.Cut("h2", "h1", TCPTraffic)
	if err != nil {
		t.Fatal(err)
	}
	want("TCP is cut, too", false, true)
	if err := cut.Heal(); err != nil {
		t.Error(err)
	}
	want("healed", true, true)

	listener, err := l.Host("h1").Listen(t.Context(), "tcp", net.JoinHostPort(l.Host("h1").Addr.String(), "9"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	connects := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		conn, err := l.Host("h2").DialContext(ctx, "tcp", listener.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	if connects() {
		t.Error("TCP passes the cut of TCP")
	}
	if err := second.Heal(); err != nil {
		t.Error(err)
	}
	if !connects() {
		t.Error("TCP does not pass any more")
	}
	if _, err := l.Cut("h1", "h9", AllTraffic); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("an unknown host: %v", err)
	}
}
