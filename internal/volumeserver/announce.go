package volumeserver

import (
	"context"
	"net"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

const (
	// announceEvery is how often the fleet's server is told where this one is: its
	// store may have been restored from a backup meanwhile.
	announceEvery = time.Minute
	// The pauses between tries double from the first to the longest.
	announceAgainMin = time.Second
	announceAgainMax = 30 * time.Second
	announceWithin   = 10 * time.Second
)

// announce tells the fleet's server where this one is reached, until ctx ends.
func (s *Server) announce(ctx context.Context) {
	if s.config.Fleet == nil {
		return
	}
	pause := announceAgainMin
	for {
		wait := announceEvery
		if err := s.announceOnce(ctx); err != nil && ctx.Err() == nil {
			// The hosts that know it already go on without.
			s.config.Log.Warn("the fleet's server does not know where this volume server is", "again", pause, "error", err)
			wait, pause = pause, min(2*pause, announceAgainMax)
		} else {
			pause = announceAgainMin
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (s *Server) announceOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, announceWithin)
	defer cancel()
	nbd, control := s.Addresses()
	_, err := s.config.Fleet.Announce(ctx, &godwitv1.AnnounceVolumeServerRequest{Server: &godwitv1.VolumeServer{
		Address: s.config.Address.String(), SoftwareVersion: s.config.Version,
		NbdPort: portOf(nbd), ControlPort: portOf(control),
	}})
	return err
}

// portOf gives the port of a TCP listener.
func portOf(address net.Addr) uint32 {
	return uint32(address.(*net.TCPAddr).Port)
}
