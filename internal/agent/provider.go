package agent

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/network"
	"godwit.dev/godwit/internal/wire"
)

const (
	// networksEvery is how often it is looked whether the host's bridges have changed.
	networksEvery = 5 * time.Second

	// announceFirst is the pause after the first announcement of a guest that has
	// arrived, which doubles up to announceEvery.
	announceFirst = 50 * time.Millisecond
	announceEvery = time.Second

	// quietFor: so long nothing may have come from outside for a guest that has moved
	// before the forwarding ends. In that time the target announces it once at least.
	quietFor = 2 * announceEvery
	// quietWithin is how long that is waited for, and yieldWithin how long for the
	// bridge to hear the guest elsewhere.
	quietWithin = 15 * time.Second
	quietLook   = 50 * time.Millisecond
	yieldWithin = 3 * announceEvery

	// forwardWithin is how long the bridge of a target's port may take to forward: twice
	// the longest usual delay of the spanning tree protocol is 30 s.
	forwardWithin = 40 * time.Second
	// resumedFor is how long a source that runs on is announced.
	resumedFor = 5 * time.Second
)

// followNetworks tells the server what the host has of networks by itself, whenever it
// is not what the server was told last, until ctx ends.
func (a *Agent) followNetworks(ctx context.Context, s *session, told fleet.HostNetworks) {
	look := time.NewTicker(networksEvery)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		now, err := a.config.Network.HostNetworks()
		if err != nil {
			a.log.Warn("the host's bridges are not known", "error", err) // what was told holds
			continue
		}
		if !told.Equal(now) {
			told = now
			s.send(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Networks{Networks: wire.EncodeHostNetworks(now)}})
		}
	}
}

// bridged gives the ports in provider networks.
func (m *machine) bridged() (ports []*port) {
	for _, port := range m.allPorts() {
		if port.Bridge != "" {
			ports = append(ports, port)
		}
	}
	return ports
}

// announce tells provider networks that the guest is here. A switch that has forgotten
// it floods its frames, and in a hand-over one would reach it by both hosts.
func (m *machine) announce() {
	for _, port := range m.bridged() {
		if err := port.tap.Announce(port.IPs); err != nil {
			m.agent.log.Warn("a guest is not announced", "vm", m.key.vm, "port", port.Name, "error", err)
		}
	}
}

// announceArrival does so again and again, for switches that have not heard it and
// for those that do not listen yet, until the source no longer forwards.
func (m *machine) announceArrival(ctx context.Context) { m.announceWhile(ctx, m.settling) }

// announceReturn does so for a while after the guest of a source runs on: bridges of the
// target's host may have to learn again where it is.
func (m *machine) announceReturn(ctx context.Context) {
	until := time.Now().Add(resumedFor)
	m.announceWhile(ctx, func() bool { return len(m.bridged()) > 0 && time.Now().Before(until) })
}

func (m *machine) announceWhile(ctx context.Context, wanted func() bool) {
	pause := announceFirst
	for wanted() {
		m.announce()
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-m.gone:
			again.Stop()
			return
		case <-ctx.Done():
			again.Stop()
			return
		}
		pause = min(2*pause, announceEvery)
	}
}

// settling tells whether a port in a provider network still gets forwarded frames.
func (m *machine) settling() bool {
	for _, port := range m.bridged() {
		if gate, err := port.tap.Gate(); err == nil && gate.Mode == network.Settling {
			return true
		}
	}
	return false
}

// leaveBridges goes on to forward until provider networks send nothing here any more,
// and has the host's own bridges learn the way to the new place. A network that does
// not learn is not waited for for ever.
func (m *machine) leaveBridges(ctx context.Context) {
	quiet, cancel := context.WithTimeout(ctx, quietWithin)
	defer cancel()
	for _, port := range m.bridged() {
		if err := awaitQuiet(quiet, port.tap); err != nil {
			m.agent.log.Warn("frames for a guest still come to where it was; those of the host itself find their own way now, others are not forwarded any more",
				"vm", m.key.vm, "port", port.Name, "bridge", port.Bridge, "error", err)
		}
	}
	m.yieldBridges(ctx)
}

// yieldBridges has the host's bridges learn the way to where the guest is now.
func (m *machine) yieldBridges(ctx context.Context) {
	for _, port := range m.bridged() {
		one, cancel := context.WithTimeout(ctx, yieldWithin)
		if err := port.tap.Yield(one); err != nil {
			m.agent.log.Warn("a bridge has not heard where a guest is now", "vm", m.key.vm, "port", port.Name, "bridge", port.Bridge, "error", err)
		}
		cancel()
	}
}

func awaitQuiet(ctx context.Context, tap *network.Tap) error {
	began := time.Now()
	look := time.NewTicker(quietLook)
	defer look.Stop()
	for {
		ago, ever, err := tap.LastRedirect()
		if !ever {
			ago = time.Since(began)
		}
		if err != nil || ago >= quietFor {
			return err
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitForwarding waits until frames that come directly reach a target's ports.
func (m *machine) awaitForwarding() error {
	ctx, cancel := context.WithTimeout(m.life, forwardWithin)
	defer cancel()
	for _, port := range m.allPorts() {
		if err := port.tap.AwaitForwarding(ctx); err != nil {
			return err
		}
	}
	return nil
}

// claimed: the host's bridges give a target the frames for its guest.
func (m *machine) claimed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.receives || m.letIn()
}
