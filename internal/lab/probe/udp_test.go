package probe

import (
	"context"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/witness"
)

// faultyConn is an echo's socket that mistreats chosen replies, by number.
type faultyConn struct {
	*net.UDPConn
	lose, double, late, spoil, rewind map[uint64]bool
	stall                             func(sequence uint64) // before a reply

	held []byte // late reply, sent after the next
}

func (c *faultyConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	packet, err := witness.ParsePacket(b)
	if err != nil {
		return 0, err
	}
	n := packet.Sequence
	if c.stall != nil {
		c.stall(n)
	}
	switch {
	case c.lose[n]:
		return len(b), nil
	case c.late[n]:
		c.held = append([]byte(nil), b...)
		return len(b), nil
	case c.double[n]:
		c.UDPConn.WriteToUDPAddrPort(b, to)
	case c.spoil[n]:
		b[len(b)-1] ^= 1
	case c.rewind[n]:
		packet.Counter -= 3
		packet.Marshal(b)
	}
	written, err := c.UDPConn.WriteToUDPAddrPort(b, to)
	if c.held != nil {
		c.UDPConn.WriteToUDPAddrPort(c.held, to)
		c.held = nil
	}
	return written, err
}

// pair gives a place for a probe, and an address in another namespace with a
// place for the echo.
func pair(t *testing.T) (client, server Place, addr netip.Addr) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	l, err := lab.New(t.Context(), lab.Config{Hosts: []string{"client", "server"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l.Host("client"), l.Host("server"), l.Host("server").Addr
}

// echo serves the guest's UDP echo at an address until the test ends.
func echo(t *testing.T, place Place, addr netip.Addr, conn *faultyConn) *witness.Ledger {
	t.Helper()
	err := place.Do(func() (err error) {
		conn.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, witness.UDPPort)))
		if err != nil {
			return err
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, witness.ReceiveBuffer)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	ledger := witness.NewLedger()
	ctx, cancel := context.WithCancel(t.Context())
	begun := time.Now()
	var serving sync.WaitGroup
	serving.Go(func() {
		witness.ServeUDP(ctx, conn, ledger, 1, func() time.Duration { return time.Since(begun) })
	})
	t.Cleanup(func() {
		cancel()
		serving.Wait()
	})
	return ledger
}

func set(numbers ...uint64) map[uint64]bool {
	m := make(map[uint64]bool)
	for _, n := range numbers {
		m[n] = true
	}
	return m
}

func TestUDPSeesWhatIsDoneToItsPackets(t *testing.T) {
	client, server, addr := pair(t)
	ledger := echo(t, server, addr, &faultyConn{
		lose: set(10, 11, 50), double: set(20, 21), late: set(30), spoil: set(40), rewind: set(60),
	})
	u, err := StartUDP(client, UDPConfig{
		Target: netip.AddrPortFrom(addr, 0), Rate: 1000, Size: 1472, Straggle: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Answered(t.Context(), u.Begun(), 200); err != nil {
		t.Fatal(err)
	}
	clean := u.Mark()
	if err := u.Answered(t.Context(), clean, 200); err != nil {
		t.Fatal(err)
	}
	faulty := u.Window(t.Context(), u.Begun(), clean)
	rest := u.Window(t.Context(), clean, u.Mark())
	all, err := u.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]UDPResult{"window": faulty, "run": all} {
		if r.Lost != 3 || r.Duplicated != 2 || r.Reordered != 1 || r.Corrupted != 1 || r.Replayed != 1 || r.Reboots != 0 {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if rest.Lost+rest.Duplicated+rest.Reordered+rest.Corrupted+rest.Replayed != 0 || rest.Sent < 200 {
		t.Errorf("window without faults: %+v", rest)
	}
	flows := ledger.Flows()
	if len(flows) != 1 || flows[0].Flow != u.Flow() || flows[0].Received != all.Sent || flows[0].Lost() != 0 {
		t.Errorf("the echo saw %+v of %d packets", flows, all.Sent)
	}
}

func TestUDPMeasuresAPause(t *testing.T) {
	client, server, addr := pair(t)
	const pause = 150 * time.Millisecond
	echo(t, server, addr, &faultyConn{stall: func(sequence uint64) {
		if sequence == 400 {
			time.Sleep(pause) // the outage that the probe has to see
		}
	}})
	u, err := StartUDP(client, UDPConfig{Target: netip.AddrPortFrom(addr, 0), Rate: 2000})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Answered(t.Context(), u.Begun(), 800); err != nil {
		t.Fatal(err)
	}
	r, err := u.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.LongestGap < pause-10*time.Millisecond || r.LongestGap > pause+r.LongestSendGap+time.Second {
		t.Errorf("a pause of %s is measured as %s", pause, r.LongestGap)
	}
	if r.Lost != 0 || r.Duplicated != 0 || r.RTT.Max < pause-10*time.Millisecond || r.RTT.P50 > pause/2 {
		t.Errorf("%+v", r)
	}
}

func TestUDPPace(t *testing.T) {
	client, server, addr := pair(t)
	echo(t, server, addr, &faultyConn{})
	const rate = 5000
	u, err := StartUDP(client, UDPConfig{Target: netip.AddrPortFrom(addr, 0), Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Answered(t.Context(), u.Begun(), rate); err != nil {
		t.Fatal(err)
	}
	to := u.Mark()
	r := u.Window(t.Context(), u.Begun(), to)
	if _, err := u.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := to.At.Sub(u.Begun().At)
	t.Logf("%d packets in %s; longest gap %s, longest send gap %s, round trips %+v", r.Sent, took, r.LongestGap, r.LongestSendGap, r.RTT)
	if most := uint64(took.Seconds()*rate) + maxBurst + 1; r.Sent > most {
		t.Errorf("%d packets in %s are faster than the rate", r.Sent, took)
	}
	if r.Lost+r.Duplicated+r.Corrupted+r.OwnDrops+r.SendFailed != 0 {
		t.Errorf("%+v", r)
	}
}

func TestUDPWithoutAnyAnswer(t *testing.T) {
	client, _, addr := pair(t)
	u, err := StartUDP(client, UDPConfig{Target: netip.AddrPortFrom(addr, 0), Straggle: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := u.Answered(ctx, u.Begun(), 1); err == nil {
		t.Error("nobody answers, and somebody did")
	}
	r, err := u.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent == 0 || r.Lost != r.Sent || r.LongestGap < 200*time.Millisecond {
		t.Errorf("%+v", r)
	}
}

func TestUDPConfigRefused(t *testing.T) {
	target := netip.MustParseAddrPort("127.0.0.1:7000")
	for name, config := range map[string]UDPConfig{
		"no target": {},
		"rate":      {Target: target, Rate: MaxRate + 1},
		"too small": {Target: target, Size: MinSize - 1},
		"too large": {Target: target, Size: witness.MaxPacketSize + 1},
	} {
		if u, err := StartUDP(Here{}, config); err == nil {
			u.Stop(t.Context())
			t.Errorf("%s is accepted", name)
		}
	}
}
