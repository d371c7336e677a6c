package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"godwit.dev/godwit/internal/lab/probe"
)

const (
	// straggle is how long a packet may be on its way before it counts as lost.
	straggle = 5 * time.Second
	// longStraggle is for guests that fall behind and catch up.
	longStraggle = 30 * time.Second
	// settle is how many answers on every port show that all is as before.
	settle = 50
)

// traffic is what a client sends to each address of a guest.
type traffic struct {
	Rate     int           // UDP packets a second
	Size     int           // bytes of UDP payload
	Straggle time.Duration // how long to wait for the last replies
}

// seen is what a client saw of one migration, over all ports of the VM. Times
// are milliseconds.
type seen struct {
	UDPSent       uint64  `json:"udp_sent"`
	UDPLost       uint64  `json:"udp_lost"`
	UDPDuplicated uint64  `json:"udp_duplicated"`
	UDPCorrupted  uint64  `json:"udp_corrupted"`
	UDPReplayed   uint64  `json:"udp_replayed"`   // answered by a guest that ran twice from one state
	LongestGapMs  float64 `json:"longest_gap_ms"` // without any answer at some port
	TCPBytes      uint64  `json:"tcp_bytes"`      // that came back, and right
	TCPBroken     bool    `json:"tcp_broken"`
	TCPReason     string  `json:"tcp_reason,omitempty"`

	// About the client itself: a run in which these are large says little.
	ProbeDropped uint64  `json:"probe_dropped"` // packets that its own socket refused
	ProbeStallMs float64 `json:"probe_stall_ms"`
}

// caller talks to a guest: TCP from dial to hangUp, UDP during migrations.
type caller struct {
	place   probe.Place
	guest   []netip.Addr
	traffic traffic
	tcp     *probe.TCP
	udp     []*probe.UDP
}

// dial begins the stream to the guest's first address; hangUp must follow.
func dial(ctx context.Context, place probe.Place, guest []netip.Addr, traffic traffic) (*caller, error) {
	tcp, err := probe.StartTCP(ctx, place, probe.TCPConfig{Target: netip.AddrPortFrom(guest[0], 0)})
	if err != nil {
		return nil, err
	}
	return &caller{place: place, guest: guest, traffic: traffic, tcp: tcp}, nil
}

// during sends packets to every address before, while and after do runs, until
// the guest has answered again on each, and waits for the last replies.
func (c *caller) during(ctx context.Context, do func() error) (s seen, err error) {
	defer func() {
		for _, udp := range c.udp { // only after an error
			_, stopErr := udp.Stop(ctx)
			err = errors.Join(err, stopErr)
		}
		c.udp = nil
	}()
	for _, addr := range c.guest {
		udp, err := probe.StartUDP(c.place, probe.UDPConfig{
			Target: netip.AddrPortFrom(addr, 0), Rate: c.traffic.Rate, Size: c.traffic.Size, Straggle: c.traffic.Straggle,
		})
		if err != nil {
			return s, err
		}
		c.udp = append(c.udp, udp)
	}
	if err := c.answered(ctx); err != nil {
		return s, err
	}
	before := c.now()
	if err := do(); err != nil {
		return s, err
	}
	if err := c.answered(ctx); err != nil {
		return s, fmt.Errorf("the guest does not answer any more: %w", err)
	}
	return c.between(ctx, before, c.now())
}

// answered waits until packets that are sent from now on are answered.
func (c *caller) answered(ctx context.Context) error {
	for i, mark := range c.now().udp {
		if err := c.udp[i].Answered(ctx, mark, settle); err != nil {
			return err
		}
	}
	return nil
}

// moment is a moment in the traffic.
type moment struct {
	at  time.Time
	udp []probe.Mark
}

func (c *caller) now() moment {
	m := moment{at: time.Now()}
	for _, udp := range c.udp {
		m.udp = append(m.udp, udp.Mark())
	}
	return m
}

// between ends the sending of packets, and tells what became of them all. The
// gap and the stream's bytes are those between the two moments.
func (c *caller) between(ctx context.Context, from, to moment) (s seen, err error) {
	over, end := context.WithCancel(ctx)
	end() // what has not come by Stop does not come
	var errs []error
	for i, udp := range c.udp {
		all, err := udp.Stop(ctx)
		errs = append(errs, err)
		s.UDPSent += all.Sent
		s.UDPLost += all.Lost
		s.UDPDuplicated += all.Duplicated
		s.UDPCorrupted += all.Corrupted
		s.UDPReplayed += all.Replayed
		s.ProbeDropped += all.OwnDrops + all.SendFailed
		window := udp.Window(over, from.udp[i], to.udp[i])
		s.LongestGapMs = max(s.LongestGapMs, milliseconds(window.LongestGap))
		s.ProbeStallMs = max(s.ProbeStallMs, milliseconds(window.LongestSendGap))
	}
	c.udp = nil
	stream := c.tcp.Window(from.at, to.at)
	s.TCPBytes, s.TCPBroken, s.TCPReason = stream.Bytes, stream.Broken, stream.Reason
	return s, errors.Join(errs...)
}

// hangUp ends the stream when every byte has come back, and tells what became
// of it.
func (c *caller) hangUp(ctx context.Context) probe.TCPResult { return c.tcp.Stop(ctx) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
