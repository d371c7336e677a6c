package witness

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ReceiveBuffer is how large an echo's receive buffer has to be, in bytes. What
// was held back during a hand-over comes in one go: 5,000 small packets, the
// traffic of a second, must not overflow the guest's own socket.
const ReceiveBuffer = 32 << 20

// maxConns is how many TCP connections one listener serves at a time; more
// wait in the kernel's backlog.
const maxConns = 64

// PacketConn is the part of *net.UDPConn that an echo needs.
type PacketConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Close() error
}

// Clock gives the guest's monotonic clock.
type Clock func() time.Duration

// ServeUDP echoes packets until ctx ends, noting each in the ledger. It
// returns ctx's error, or that of a socket that can no longer be read.
func ServeUDP(ctx context.Context, conn PacketConn, ledger *Ledger, boot uint64, clock Clock) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer conn.Close()
	defer stop()
	buffer := make([]byte, MaxPacketSize+1)
	var nonces Nonces
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		packet, err := ParsePacket(buffer[:n])
		if err != nil || packet.Reply || n > MaxPacketSize {
			continue // answering a reply could go round for ever
		}
		now := clock()
		packet.Reply = true
		packet.Clock = int64(now)
		packet.Boot = boot
		packet.Nonce = nonces.Draw(now)
		packet.Counter = ledger.Note(packet.Flow, packet.Sequence, now)
		packet.Written, packet.WrittenNonce = ledger.Written()
		packet.Marshal(buffer)
		// A reply that cannot be sent is a lost packet, and the client will
		// see it as one.
		_, _ = conn.WriteToUDPAddrPort(buffer[:n], from)
	}
}

// ServeTCP sends back the bytes of every connection until ctx ends, adding
// their number to total.
func ServeTCP(ctx context.Context, listener net.Listener, total *atomic.Uint64) error {
	return serve(ctx, listener, func(conn net.Conn) {
		buffer := make([]byte, 32<<10)
		for {
			n, err := conn.Read(buffer)
			if _, werr := conn.Write(buffer[:n]); werr != nil {
				return
			}
			total.Add(uint64(n))
			if err != nil {
				return
			}
		}
	})
}

// ServeControl answers the requests of every connection with handle's report
// until ctx ends.
func ServeControl(ctx context.Context, listener net.Listener, handle func(Request) Report) error {
	return serve(ctx, listener, func(conn net.Conn) {
		lines := bufio.NewScanner(conn)
		answers := json.NewEncoder(conn)
		for lines.Scan() {
			var request Request
			report := Report{Kind: KindFatal, Error: "request is not JSON"}
			if err := json.Unmarshal(lines.Bytes(), &request); err == nil {
				report = handle(request)
			}
			if answers.Encode(report) != nil {
				return
			}
		}
	})
}

// serve runs each connection in a goroutine of its own and waits for all of
// them before it returns.
func serve(ctx context.Context, listener net.Listener, each func(net.Conn)) error {
	var running sync.WaitGroup
	defer running.Wait()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer listener.Close()
	defer stop()
	places := make(chan struct{}, maxConns)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		running.Go(func() {
			defer func() { <-places }()
			unhook := context.AfterFunc(ctx, func() { conn.Close() })
			defer conn.Close()
			defer unhook()
			each(conn)
		})
	}
}
