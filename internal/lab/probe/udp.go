package probe

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab/witness"
)

// Defaults and limits of a UDP probe.
const (
	DefaultRate     = 500
	MaxRate         = 50_000
	DefaultSize     = 96
	MinSize         = witness.HeaderSize
	DefaultStraggle = 2 * time.Second

	// maxBurst bounds how many late packets are sent at once. If the probe
	// is later than that, it sends fewer than its rate.
	maxBurst = 64
	// socketBuffer holds about 5 s of small packets at 5,000 a second, each
	// way: neither a slow reader nor a neighbour that is not resolved yet may
	// hold up the sender.
	socketBuffer = 16 << 20
	// longestNap bounds how late a sender notices that it shall stop.
	longestNap = 50 * time.Millisecond
)

// UDPConfig says what to send. Fields that are zero get the default.
type UDPConfig struct {
	Target   netip.AddrPort // port 0 is the guest's echo
	Rate     int            // packets per second
	Size     int            // bytes of UDP payload; 1472 fills an MTU of 1500
	Straggle time.Duration  // how long to wait for the last replies of a window
}

// UDP is a running probe.
type UDP struct {
	config  UDPConfig
	conn    *net.UDPConn
	flow    uint64
	filler  []byte
	history history
	begun   Mark

	halt    chan struct{} // closed to stop the sender
	sender  sync.WaitGroup
	reader  sync.WaitGroup
	stopped sync.Once

	mu  sync.Mutex
	err error // first that ended the sender or the reader by itself
}

// StartUDP sends packets from a place until Stop.
func StartUDP(place Place, config UDPConfig) (*UDP, error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("UDP probe: %w", err)
	}
	conn, err := openUDP(place, config.Target.Addr())
	if err != nil {
		return nil, fmt.Errorf("UDP probe: %w", err)
	}
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails, by its contract
	u := &UDP{
		config: config, conn: conn,
		flow:   binary.BigEndian.Uint64(id[:]) >> 11, // exact in every JSON reader
		filler: make([]byte, (config.Size-witness.HeaderSize+7)&^7),
		halt:   make(chan struct{}),
	}
	noise := witness.Noise(u.flow)
	noise.Fill(u.filler)
	u.filler = u.filler[:config.Size-witness.HeaderSize]
	u.begun = u.Mark()
	u.reader.Go(func() { u.note(u.receive()) })
	u.sender.Go(func() { u.note(u.send()) })
	return u, nil
}

func (c *UDPConfig) complete() error {
	c.Target = withPort(c.Target, witness.UDPPort)
	if c.Rate == 0 {
		c.Rate = DefaultRate
	}
	if c.Size == 0 {
		c.Size = DefaultSize
	}
	if c.Straggle == 0 {
		c.Straggle = DefaultStraggle
	}
	switch {
	case !c.Target.IsValid():
		return errors.New("no target")
	case c.Rate < 1 || c.Rate > MaxRate:
		return fmt.Errorf("rate %d is not within 1..%d packets/s", c.Rate, MaxRate)
	case c.Size < MinSize || c.Size > witness.MaxPacketSize:
		return fmt.Errorf("size %d is not within %d..%d bytes", c.Size, MinSize, witness.MaxPacketSize)
	}
	return nil
}

// openUDP makes a socket that stamps what it receives and counts what it
// drops. It is not connected, so that no ICMP message can fail a send.
func openUDP(place Place, target netip.Addr) (conn *net.UDPConn, err error) {
	network, local := "udp4", "0.0.0.0:0"
	if target.Is6() {
		network, local = "udp6", "[::]:0"
	}
	listen := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) {
			failed = errors.Join(
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1))
			// Only root may go above the system's limits; OwnDrops and
			// LongestSendGap tell when less was not enough.
			for force, ask := range map[int]int{
				unix.SO_RCVBUFFORCE: unix.SO_RCVBUF,
				unix.SO_SNDBUFFORCE: unix.SO_SNDBUF,
			} {
				if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, force, socketBuffer) != nil {
					failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, ask, socketBuffer))
				}
			}
		})
		return errors.Join(err, failed)
	}}
	err = place.Do(func() error {
		packets, err := listen.ListenPacket(context.Background(), network, local)
		if err != nil {
			return err
		}
		conn = packets.(*net.UDPConn)
		return nil
	})
	return conn, err
}

// send sends packets at the pace of the rate until halt.
func (u *UDP) send() error {
	runtime.LockOSThread() // its timer slack is not for others: it ends with the goroutine
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set timer slack: %w", err)
	}
	buffer := make([]byte, u.config.Size)
	copy(buffer[witness.HeaderSize:], u.filler)
	interval := time.Second / time.Duration(u.config.Rate)
	next := monotonic()
	for {
		if stop, err := u.sleepUntil(next); stop || err != nil {
			return err
		}
		if err := u.sendOne(buffer); err != nil {
			return err
		}
		next += interval
		if now := monotonic(); now-next > maxBurst*interval {
			next = now
		}
	}
}

// sleepUntil sleeps to a moment of the monotonic clock, or says that halt came
// first.
func (u *UDP) sleepUntil(at time.Duration) (stop bool, err error) {
	for {
		select {
		case <-u.halt:
			return true, nil
		default:
		}
		now := monotonic()
		if now >= at {
			return false, nil
		}
		until := unix.NsecToTimespec(int64(min(at, now+longestNap)))
		err := unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &until, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("sleep: %w", err)
		}
	}
}

// monotonic is the kernel's clock that ClockNanosleep sleeps by.
func monotonic() time.Duration {
	var now unix.Timespec
	// It fails for unknown clocks only.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano())
}

func (u *UDP) sendOne(buffer []byte) error {
	now := time.Now().UnixNano()
	sequence, err := u.history.send(now)
	if err != nil {
		return err
	}
	witness.Packet{Flow: u.flow, Sequence: sequence, Sent: now}.Marshal(buffer)
	if _, err := u.conn.WriteToUDPAddrPort(buffer, u.config.Target); err != nil {
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		u.history.sendFailed(sequence)
	}
	return nil
}

// receive notes replies until the socket is closed.
func (u *UDP) receive() error {
	buffer := make([]byte, witness.MaxPacketSize+1)
	control := make([]byte, 128)
	for {
		n, m, _, from, err := u.conn.ReadMsgUDPAddrPort(buffer, control)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		at, drops := readControl(control[:m])
		u.history.drops(drops)
		packet, err := witness.ParsePacket(buffer[:n])
		if err != nil || !packet.Reply || packet.Flow != u.flow || from.Port() != u.config.Target.Port() {
			continue
		}
		u.history.receive(reply{
			packet: packet, at: at,
			intact: bytes.Equal(buffer[witness.HeaderSize:n], u.filler),
		})
	}
}

// readControl gives the kernel's time of reception, or the present if it did
// not say, and how many packets the socket has dropped so far.
func readControl(control []byte) (at int64, drops uint32) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Now().UnixNano(), 0
	}
	for _, message := range messages {
		switch {
		case message.Header.Level != unix.SOL_SOCKET:
		case message.Header.Type == unix.SO_TIMESTAMPNS && len(message.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			at = (*unix.Timespec)(unsafe.Pointer(&message.Data[0])).Nano()
		case message.Header.Type == unix.SO_RXQ_OVFL && len(message.Data) >= 4:
			drops = binary.NativeEndian.Uint32(message.Data)
		}
	}
	if at == 0 {
		at = time.Now().UnixNano()
	}
	return at, drops
}

func (u *UDP) note(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil {
		u.err = err
	}
}

// Mark names the present moment.
func (u *UDP) Mark() Mark { return u.history.mark(time.Now()) }

// Begun is the mark of the start.
func (u *UDP) Begun() Mark { return u.begun }

// Flow is the number by which the guest's report knows this probe.
func (u *UDP) Flow() uint64 { return u.flow }

// Answered waits until so many packets sent since a mark have been answered.
func (u *UDP) Answered(ctx context.Context, since Mark, count uint64) error {
	err := u.history.await(ctx, since.next, maxPackets+1, count)
	if err != nil {
		return fmt.Errorf("UDP probe: wait for %d replies: %w", count, err)
	}
	return nil
}

// Window waits until every packet sent between two marks is answered, or
// Straggle or ctx has ended, and gives the result.
func (u *UDP) Window(ctx context.Context, from, to Mark) UDPResult {
	ctx, cancel := context.WithTimeout(ctx, u.config.Straggle)
	defer cancel()
	// What has not come by then is lost, and the result says so.
	_ = u.history.await(ctx, from.next, to.next, 0)
	return u.history.result(from, to)
}

// Losses gives the packets sent between two marks that have had no reply until
// now, those that were sent in a row together.
func (u *UDP) Losses(from, to Mark) []Loss { return u.history.losses(from, to) }

// Stop stops sending, waits for the last replies as Window does, and gives the
// result of the whole run. The error says why the probe stopped before.
func (u *UDP) Stop(ctx context.Context) (UDPResult, error) {
	u.stopped.Do(func() { close(u.halt) })
	u.sender.Wait()
	result := u.Window(ctx, u.begun, u.Mark())
	u.conn.Close()
	u.reader.Wait()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return result, fmt.Errorf("UDP probe: %w", u.err)
	}
	return result, nil
}
