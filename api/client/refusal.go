package client

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"
)

// probeLimit bounds the time that finding the reason of a failure may take.
const probeLimit = 2 * time.Second

// explained finds out why a call over TLS failed. With TLS 1.3 a server judges
// the client's certificate after the client's part of the handshake is over
// (RFC 8446, section 4.4.2.4), and its alert is lost where HTTP/2 already
// writes. So after a failure one more connection is made, only to read what
// the server says to it.
type explained struct {
	*http.Transport
	address string
}

func (e explained) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := e.Transport.RoundTrip(request)
	if err == nil || request.Context().Err() != nil || neverSent(err) {
		return response, err
	}
	if refusal := e.probe(request.Context()); refusal != nil {
		return nil, refusal
	}
	return nil, err
}

// probe gives the alert with which the server ends a new connection, if any.
func (e explained) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	config := e.TLSClientConfig.Clone()
	config.NextProtos = []string{"h2"}
	dialer := &tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", e.address)
	if err == nil {
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err = conn.SetReadDeadline(deadline); err == nil {
			_, err = conn.Read(make([]byte, 1)) // an alert, or the server's settings
		}
	}
	if alert, ok := errors.AsType[*net.OpError](err); ok && alert.Op == "remote error" {
		return alert
	}
	return nil
}
