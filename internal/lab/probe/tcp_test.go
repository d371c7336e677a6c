package probe

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

// serveTCP accepts one connection on loopback and hands it to each.
func serveTCP(t *testing.T, each func(net.Conn)) netip.AddrPort {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		each(conn)
	})
	t.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	return listener.Addr().(*net.TCPAddr).AddrPort()
}

// pass echoes n bytes.
func pass(conn net.Conn, n int64) { io.CopyN(conn, conn, n) }

func TestTCPEchoOfTheGuest(t *testing.T) {
	client, server, addr := pair(t)
	var listener net.Listener
	err := server.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(addr, witness.TCPPort).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var total atomic.Uint64
	var serving sync.WaitGroup
	serving.Go(func() { witness.ServeTCP(ctx, listener, &total) })
	defer serving.Wait()
	defer cancel()

	const rate = 1 << 20
	stream, err := StartTCP(t.Context(), client, TCPConfig{Target: netip.AddrPortFrom(addr, 0), Rate: rate, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	for total.Load() < rate/4 { // the echo has no event to wait for
		time.Sleep(5 * time.Millisecond)
	}
	r := stream.Stop(t.Context())
	if r.Broken || r.Bytes != total.Load() || r.LongestGap <= 0 {
		t.Errorf("%+v, the echo had %d bytes", r, total.Load())
	}
	if later := stream.Window(time.Now(), time.Now()); later.Bytes != 0 || later.Broken {
		t.Errorf("window after the end: %+v", later)
	}
}

func TestTCPMeasuresAPause(t *testing.T) {
	const pause = 150 * time.Millisecond
	resumed := make(chan time.Time, 1)
	addr := serveTCP(t, func(conn net.Conn) {
		pass(conn, 20_000)
		time.Sleep(pause) // the outage that the probe has to see
		resumed <- time.Now()
		io.Copy(conn, conn)
	})
	stream, err := StartTCP(t.Context(), Here{}, TCPConfig{Target: addr, Rate: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	<-resumed
	r := stream.Stop(t.Context())
	if r.Broken || r.LongestGap < pause-10*time.Millisecond {
		t.Errorf("a pause of %s is seen as %+v", pause, r)
	}
}

func TestTCPSeesABrokenStream(t *testing.T) {
	for name, test := range map[string]struct {
		server func(net.Conn)
		want   string
	}{
		"changed byte": {func(conn net.Conn) {
			pass(conn, 1000)
			b := make([]byte, 1)
			io.ReadFull(conn, b)
			b[0] ^= 0x80
			conn.Write(b)
			io.Copy(conn, conn)
		}, "other bytes came back"},
		"byte left out": {func(conn net.Conn) {
			pass(conn, 1000)
			io.ReadFull(conn, make([]byte, 1))
			io.Copy(conn, conn)
		}, "other bytes came back"},
		"reset": {func(conn net.Conn) {
			pass(conn, 1000)
			conn.(*net.TCPConn).SetLinger(0)
		}, "reset"},
		"closed": {func(conn net.Conn) {
			pass(conn, 1000)
			conn.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, conn)
		}, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := StartTCP(t.Context(), Here{}, TCPConfig{Target: serveTCP(t, test.server)})
			if err != nil {
				t.Fatal(err)
			}
			<-stream.ended
			r := stream.Stop(t.Context())
			if !r.Broken || !strings.Contains(r.Reason, test.want) {
				t.Errorf("%+v, want a reason with %q", r, test.want)
			}
		})
	}
}

func TestTCPThatSwallowsItsEnd(t *testing.T) {
	swallowing := make(chan struct{})
	addr := serveTCP(t, func(conn net.Conn) {
		pass(conn, 1000)
		close(swallowing)
		io.Copy(io.Discard, conn)
	})
	stream, err := StartTCP(t.Context(), Here{}, TCPConfig{Target: addr, Straggle: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	<-swallowing
	if r := stream.Stop(t.Context()); !r.Broken || !strings.Contains(r.Reason, "never came back") {
		t.Errorf("%+v", r)
	}
}
