package server

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"godwit.dev/godwit/api/client"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

// hostAgents keeps connections to the agents of hosts that were asked for something
// where other hosts reach them: each key that is pressed in a console is a call.
type hostAgents struct {
	keeper *pki.Keeper
	dial   func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex
	byHost map[fleet.HostName]*hostAgent
}

type hostAgent struct {
	*client.Peer
	address netip.AddrPort
}

// of gives a client for the agent of a host, by its record.
func (c *hostAgents) of(host fleet.Host) (*hostAgent, error) {
	if host.PeerPort == 0 {
		return nil, &fleet.Error{
			Code: fleet.Unsupported, Op: "ask agent", Subject: "host " + string(host.Name), Cause: "its agent listens for nobody",
			Hint: "see the agent's --peer-port, and that it has the server's version",
		}
	}
	address := netip.AddrPortFrom(host.Address, host.PeerPort)
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.byHost[host.Name]
	if known != nil && known.address == address {
		return known, nil
	}
	if known != nil {
		known.Close()
	}
	fresh, err := client.DialPeer(client.Config{
		Server: "https://" + address.String(), Dial: c.dial,
		TLS: c.keeper.ClientConfig(pki.Expect{Kind: pki.Host, Name: string(host.Name)}),
	})
	if err != nil {
		return nil, err
	}
	c.byHost[host.Name] = &hostAgent{fresh, address}
	return c.byHost[host.Name], nil
}

// agentOf gives a client of a host's agent.
func (s *Server) agentOf(ctx context.Context, host fleet.HostName) (*hostAgent, error) {
	entry, err := s.tables.hosts.Get(ctx, string(host))
	if err != nil {
		return nil, err
	}
	return s.agents.of(entry.Value)
}
