package server

import (
	"context"
	"fmt"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// noteWithin bounds how long a session waits for a change of its host's record.
const noteWithin = 15 * time.Second

// checkHostNetworks gives what is wrong with what a host says of its networks, and where;
// "" if nothing is.
func checkHostNetworks(networks fleet.HostNetworks) (path, problem string) {
	if networks.UnderlayMTU < 0 {
		return "networks.underlay_mtu", fmt.Sprintf("is %d", networks.UnderlayMTU)
	}
	if count := len(networks.Bridges); count > fleet.MaxBridges {
		return "networks.bridges", fmt.Sprintf("are %d, at most %d are possible", count, fleet.MaxBridges)
	}
	seen := map[string]int{}
	for i, bridge := range networks.Bridges {
		at := fmt.Sprintf("networks.bridges[%d]", i)
		first, twice := seen[bridge.Name]
		if err := fleet.CheckDevice(wire.Bounded(bridge.Name)); err != nil {
			return at + ".name", err.Error()
		}
		if twice {
			return at + ".name", fmt.Sprintf("is that of bridges[%d] too", first)
		}
		if bridge.MTU <= 0 {
			return at + ".mtu", fmt.Sprintf("is %d", bridge.MTU)
		}
		seen[bridge.Name] = i
	}
	return "", ""
}

// noteNetworks takes what a host says of its networks since its Hello. It fails only for
// what no host can have. If the store does not take it the session ends, so that the next
// Hello says it again.
func (s *Server) noteNetworks(ctx context.Context, from *session, message *godwitv1.HostNetworks, held ...store.Condition) error {
	networks := wire.DecodeHostNetworks(message)
	if path, problem := checkHostNetworks(networks); path != "" {
		return &fleet.Error{Code: fleet.Invalid, Op: "read message", Subject: "host " + string(from.host), Cause: path + " " + problem}
	}
	if s.hub.session(from.host) != from {
		return nil // the Hello of the session that has replaced it is newer
	}
	ctx, cancel := context.WithTimeout(ctx, noteWithin)
	defer cancel()
	if err := s.putNetworks(ctx, from.host, networks, held...); err != nil {
		from.end(&fleet.Error{
			Code: fleet.Unavailable, Op: "keep session", Subject: "host " + string(from.host),
			Cause: "what it says of its networks could not be recorded",
			Hint:  "it says it again in its next session; if that goes on, look after the store", Err: err,
		})
	}
	return nil
}

// putNetworks writes them to the host's record, unless it has them.
func (s *Server) putNetworks(ctx context.Context, name fleet.HostName, networks fleet.HostNetworks, held ...store.Condition) error {
	var news bool
	err := s.tables.changeHost(ctx, "note networks", name, func(host *fleet.Host) bool {
		news = !host.Networks.Equal(networks)
		host.Networks = networks
		return news
	}, held...)
	if err == nil && news {
		s.log.Info("a host's networks have changed", "host", name, "bridges", len(networks.Bridges), "underlayMTU", networks.UnderlayMTU)
	}
	return err
}
