package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

// Defaults and limits of a TCP probe.
const (
	DefaultTCPRate     = 128 << 10
	MaxTCPRate         = 64 << 20
	DefaultTCPStraggle = 10 * time.Second

	// writeEvery is how often the stream is written to.
	writeEvery = 10 * time.Millisecond
	// maxArrivals bounds the memory of a run to about 50 MB. Arrivals less
	// than a millisecond apart are one, so this lasts half an hour at least.
	maxArrivals = 1 << 21
)

// TCPConfig says what to stream. Fields that are zero get the default.
type TCPConfig struct {
	Target   netip.AddrPort // port 0 is the guest's echo
	Rate     int            // bytes per second
	Seed     uint64         // of the bytes
	Straggle time.Duration  // how long Stop waits for the last bytes
}

// TCPResult is what became of the stream within a window.
type TCPResult struct {
	Bytes      uint64        `json:"bytes"` // that came back, right, within the window
	Broken     bool          `json:"broken"`
	Reason     string        `json:"reason,omitempty"` // why it is broken
	LongestGap time.Duration `json:"longest_gap_ns"`   // without a byte coming back
}

// TCP is a running stream.
type TCP struct {
	config TCPConfig
	conn   net.Conn
	begun  time.Time

	halt    chan struct{} // closed to stop the writer
	writer  sync.WaitGroup
	reader  sync.WaitGroup
	stopped sync.Once

	mu       sync.Mutex
	sent     uint64
	echoed   uint64
	broken   error
	arrivals []arrival
	final    bool // the writer has ended
	settled  bool
	ended    chan struct{} // closed when settled: all came back, or the stream is broken
}

// arrival is a run of bytes without a break of a millisecond.
type arrival struct {
	first, last time.Time
	bytes       uint64
}

// StartTCP connects from a place and streams until Stop.
func StartTCP(ctx context.Context, place Place, config TCPConfig) (*TCP, error) {
	config.Target = withPort(config.Target, witness.TCPPort)
	if config.Rate == 0 {
		config.Rate = DefaultTCPRate
	}
	if config.Straggle == 0 {
		config.Straggle = DefaultTCPStraggle
	}
	if config.Rate < 0 || config.Rate > MaxTCPRate {
		return nil, fmt.Errorf("TCP probe: rate %d is not within 1..%d bytes/s", config.Rate, MaxTCPRate)
	}
	conn, err := dial(ctx, place, config.Target)
	if err != nil {
		return nil, fmt.Errorf("TCP probe: %w", err)
	}
	t := &TCP{
		config: config, conn: conn, begun: time.Now(),
		halt: make(chan struct{}), ended: make(chan struct{}),
	}
	t.reader.Go(t.read)
	t.writer.Go(t.write)
	return t, nil
}

// write sends the bytes of the seed at the pace of the rate until halt.
func (t *TCP) write() {
	defer t.end()
	bytes := sequence{noise: witness.Noise(t.config.Seed)}
	share := max(1, t.config.Rate*int(writeEvery)/int(time.Second))
	buffer := make([]byte, 4*share)
	owed, last := 0.0, time.Now()
	ticks := time.NewTicker(writeEvery)
	defer ticks.Stop()
	for {
		select {
		case <-t.halt:
			return
		case <-ticks.C:
			now := time.Now() // a tick's own time may be before that of the tick before
			owed = min(owed+now.Sub(last).Seconds()*float64(t.config.Rate), float64(len(buffer)))
			last = now
		}
		chunk := buffer[:int(owed)]
		owed -= float64(len(chunk))
		bytes.fill(chunk)
		n, err := t.conn.Write(chunk)
		t.mu.Lock()
		t.sent += uint64(n)
		t.mu.Unlock()
		if err != nil {
			t.breakOff(fmt.Errorf("write: %w", err))
			return
		}
	}
}

// end notes that nothing more will be sent.
func (t *TCP) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.final = true
	t.settle()
}

// settle closes ended when nothing more can change. The caller holds mu.
func (t *TCP) settle() {
	if t.settled || t.broken == nil && !(t.final && t.echoed == t.sent) {
		return
	}
	t.settled = true
	close(t.ended)
}

// read compares what comes back with the bytes of the seed.
func (t *TCP) read() {
	expected := sequence{noise: witness.Noise(t.config.Seed)}
	buffer, wanted := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := t.conn.Read(buffer)
		if err != nil {
			t.breakOff(fmt.Errorf("read: %w", err))
			return
		}
		now := time.Now()
		expected.fill(wanted[:n])
		if !bytes.Equal(buffer[:n], wanted[:n]) {
			t.mu.Lock()
			at := t.echoed
			t.mu.Unlock()
			t.breakOff(fmt.Errorf("other bytes came back than were sent, after %d", at))
			return
		}
		if err := t.arrived(now, uint64(n)); err != nil {
			t.breakOff(err)
			return
		}
	}
}

func (t *TCP) arrived(at time.Time, n uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.echoed += n
	t.settle()
	if i := len(t.arrivals) - 1; i >= 0 && at.Sub(t.arrivals[i].last) < time.Millisecond && at.Sub(t.arrivals[i].first) < writeEvery {
		t.arrivals[i].last = at
		t.arrivals[i].bytes += n
		return nil
	}
	if len(t.arrivals) == maxArrivals {
		return errors.New("the probe has run as long as it can remember")
	}
	t.arrivals = append(t.arrivals, arrival{first: at, last: at, bytes: n})
	return nil
}

// breakOff notes the first reason why the stream is broken, and ends it. The
// end that Stop brings is none.
func (t *TCP) breakOff(reason error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken == nil && !errors.Is(reason, net.ErrClosed) {
		t.broken = reason
		t.settle()
	}
	t.conn.Close()
}

// Window gives what came back between two moments of the local clock.
func (t *TCP) Window(from, to time.Time) TCPResult {
	t.mu.Lock()
	defer t.mu.Unlock()
	var r TCPResult
	if t.broken != nil {
		r.Broken, r.Reason = true, t.broken.Error()
	}
	last := from
	for _, a := range t.arrivals {
		if a.first.Before(from) {
			continue
		}
		if a.first.After(to) {
			break
		}
		r.Bytes += a.bytes
		r.LongestGap = max(r.LongestGap, a.first.Sub(last))
		last = a.last
	}
	r.LongestGap = max(r.LongestGap, to.Sub(last))
	return r
}

// Stop stops sending, waits for the bytes on their way until Straggle or ctx
// has ended, and gives the result of the whole run. Bytes that have not come
// by then leave the stream broken.
func (t *TCP) Stop(ctx context.Context) TCPResult {
	t.stopped.Do(func() { close(t.halt) })
	ctx, cancel := context.WithTimeout(ctx, t.config.Straggle)
	defer cancel()
	// A writer that the peer holds up does not see halt before its write ends.
	unblock := context.AfterFunc(ctx, func() { t.conn.Close() })
	defer unblock()
	t.writer.Wait()
	select {
	case <-t.ended:
	case <-ctx.Done():
		t.mu.Lock()
		missing := t.sent - t.echoed
		t.mu.Unlock()
		t.breakOff(fmt.Errorf("%d bytes never came back", missing))
	}
	result := t.Window(t.begun, time.Now())
	t.conn.Close()
	t.reader.Wait()
	return result
}

// sequence gives the bytes of a seed in pieces of any length.
type sequence struct {
	noise witness.Noise
	word  [8]byte
	left  int // bytes of word not given yet
}

func (s *sequence) fill(b []byte) {
	for len(b) > 0 {
		if s.left == 0 {
			binary.LittleEndian.PutUint64(s.word[:], s.noise.Next())
			s.left = len(s.word)
		}
		n := copy(b, s.word[len(s.word)-s.left:])
		s.left -= n
		b = b[n:]
	}
}
