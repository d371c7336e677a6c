package demo

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"godwit.dev/godwit/internal/lab/probe"
)

const (
	// straggle is how long a packet may be on its way before it counts as lost.
	straggle = 5 * time.Second
	// settle is how many answers on every port show that all is as before.
	settle = 50
)

// TrafficConfig says what the client sends to each of a guest's addresses.
type TrafficConfig struct {
	Rate int // UDP packets a second; 500 if zero
	Size int // bytes of UDP payload; 64 if zero
}

// Client is what a client saw of one migration, over all ports of the VM.
type Client struct {
	UDPSent       uint64  `json:"udp_sent"`
	UDPLost       uint64  `json:"udp_lost"`
	UDPDuplicated uint64  `json:"udp_duplicated"`
	LongestGapMs  float64 `json:"longest_gap_ms"` // without any answer at some port
	TCPBytes      uint64  `json:"tcp_bytes"`      // that came back, and right
	TCPBroken     bool    `json:"tcp_broken"`
}

// Traffic is a client that talks to a guest: UDP packets to every address, and
// a TCP stream to the first.
type Traffic struct {
	place  probe.Place
	guest  []netip.Addr
	config TrafficConfig
	udp    []*probe.UDP
	tcp    *probe.TCP
}

// Moment is a moment in the traffic.
type Moment struct {
	at  time.Time
	udp []probe.Mark
}

// StartTraffic begins to talk and waits for the first answers. Stop must
// follow.
func StartTraffic(ctx context.Context, place probe.Place, guest []netip.Addr, config TrafficConfig) (*Traffic, error) {
	t := &Traffic{place: place, guest: guest, config: config}
	var err error
	t.tcp, err = probe.StartTCP(ctx, place, probe.TCPConfig{Target: netip.AddrPortFrom(guest[0], 0)})
	if err == nil {
		err = t.talk(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, t.Stop(ctx))
	}
	return t, nil
}

// talk begins to send packets and waits for the first answers.
func (t *Traffic) talk(ctx context.Context) error {
	for _, addr := range t.guest {
		udp, err := probe.StartUDP(t.place, probe.UDPConfig{
			Target: netip.AddrPortFrom(addr, 0), Rate: t.config.Rate, Size: t.config.Size, Straggle: straggle,
		})
		if err != nil {
			return err
		}
		t.udp = append(t.udp, udp)
	}
	return t.Answered(ctx)
}

// Refresh lets the guest answer all packets that wait for it before it sends
// on: an emulated guest falls behind high rates while it is copied. Moments of
// before are void. The stream is not touched.
func (t *Traffic) Refresh(ctx context.Context) error {
	if err := t.hush(ctx); err != nil {
		return err
	}
	return t.talk(ctx)
}

// hush ends the sending of packets.
func (t *Traffic) hush(ctx context.Context) error {
	var errs []error
	for _, udp := range t.udp {
		_, err := udp.Stop(ctx)
		errs = append(errs, err)
	}
	t.udp = nil
	return errors.Join(errs...)
}

// Now is the present moment.
func (t *Traffic) Now() Moment {
	m := Moment{at: time.Now()}
	for _, udp := range t.udp {
		m.udp = append(m.udp, udp.Mark())
	}
	return m
}

// Answered waits until packets that are sent from now on are answered again.
func (t *Traffic) Answered(ctx context.Context) error {
	now := t.Now()
	for i, udp := range t.udp {
		if err := udp.Answered(ctx, now.udp[i], settle); err != nil {
			return err
		}
	}
	return nil
}

// Between gives what the client saw from one moment to another. It waits for
// the packets that are still on their way.
func (t *Traffic) Between(ctx context.Context, from, to Moment) Client {
	var c Client
	for i, udp := range t.udp {
		r := udp.Window(ctx, from.udp[i], to.udp[i])
		c.UDPSent += r.Sent
		c.UDPLost += r.Lost
		c.UDPDuplicated += r.Duplicated
		c.LongestGapMs = max(c.LongestGapMs, milliseconds(r.LongestGap))
	}
	stream := t.tcp.Window(from.at, to.at)
	c.TCPBytes, c.TCPBroken = stream.Bytes, stream.Broken
	return c
}

// Stop ends the traffic. Its error says why a probe had stopped before, or the
// stream was broken.
func (t *Traffic) Stop(ctx context.Context) error {
	err := t.hush(ctx)
	if t.tcp != nil {
		if r := t.tcp.Stop(ctx); r.Broken && ctx.Err() == nil {
			err = errors.Join(err, errors.New("TCP stream: "+r.Reason))
		}
	}
	return err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
