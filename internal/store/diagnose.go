package store

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
)

// diagnose finds out why an endpoint does not answer. etcd's client keeps
// trying until its time is over and then tells only that it is over; this
// connects once by itself, to learn what the client did not say. It gives nil
// when it finds nothing wrong.
func (s *Store) diagnose(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	if u.Scheme != "https" {
		return nil
	}
	settings := s.config.TLS.Clone() // nil stays nil
	if settings == nil {
		settings = new(tls.Config)
	}
	settings.ServerName = u.Hostname()
	settings.NextProtos = []string{"h2"}
	secure := tls.Client(conn, settings)
	if err := secure.HandshakeContext(ctx); err != nil {
		return err
	}
	// In TLS 1.3 the server looks at our certificate after our part of the
	// handshake. What it sends next is either its HTTP/2 settings or the alert.
	if deadline, ok := ctx.Deadline(); ok {
		_ = secure.SetReadDeadline(deadline)
	}
	_, err = secure.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // no alert
	}
	return err
}
