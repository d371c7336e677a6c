package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

const (
	renewBackoffMin = time.Second
	renewBackoffMax = 5 * time.Minute
	renewTimeout    = 30 * time.Second
	// wallCheck bounds one wait: timers do not count the time in which a
	// host was suspended or its clock was stepped.
	wallCheck = 10 * time.Minute
)

// Renew has a signing request signed by the authority and gives the new
// certificate and the authority's, both PEM.
type Renew func(ctx context.Context, requestPEM []byte) (certPEM, authorityPEM []byte, err error)

// Keeper holds the current certificate of this process, in a folder and in
// memory, and replaces it before it expires. Connections made before a
// replacement go on with the old certificate.
type Keeper struct {
	dir     string
	renew   Renew
	logger  *slog.Logger
	renewal sync.Mutex // one at a time
	current atomic.Pointer[parsed]
}

// OpenKeeper loads the folder that Credentials.Save wrote. NotFound when there
// is nothing in it, Denied when the certificate has expired. It starts
// nothing: see Run.
func OpenKeeper(dir string, renew Renew, logger *slog.Logger) (*Keeper, error) {
	credentials, err := Load(dir)
	if err != nil {
		return nil, err
	}
	p, err := credentials.parse()
	if err != nil {
		return nil, err
	}
	if now := time.Now(); now.After(p.leaf.NotAfter) {
		return nil, expired(p)
	}
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{dir: dir, renew: renew, logger: logger}
	k.current.Store(p)
	return k, nil
}

func expired(p *parsed) error {
	return &fleet.Error{
		Code: fleet.Denied, Op: "use certificate", Subject: p.identity.String(),
		Cause: "it expired at " + p.leaf.NotAfter.UTC().Format(time.RFC3339),
		Hint:  "enrol again with a new token; if that time is in the future, set the clock",
	}
}

// Identity is who this process is.
func (k *Keeper) Identity() Identity { return k.current.Load().identity }

// Credentials are the present ones.
func (k *Keeper) Credentials() Credentials { return k.current.Load().Credentials }

// NotAfter is the end of the present certificate.
func (k *Keeper) NotAfter() time.Time { return k.current.Load().leaf.NotAfter }

// Run renews the certificate at two thirds of its life, for as long as ctx
// lives. A failed renewal is logged and tried again, at growing intervals.
func (k *Keeper) Run(ctx context.Context) error {
	backoff := renewBackoffMin
	for {
		wait := min(time.Until(k.renewAt()), wallCheck)
		if wait <= 0 {
			err := k.RenewNow(ctx)
			if err == nil {
				backoff = renewBackoffMin
				continue
			}
			k.logger.Warn("certificate not renewed", "identity", k.Identity().String(),
				"notAfter", k.NotAfter(), "error", err)
			// Spread, so that a fleet does not return all at once to a
			// server that was away.
			wait = backoff + rand.N(backoff/4)
			backoff = min(2*backoff, renewBackoffMax)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func (k *Keeper) renewAt() time.Time {
	leaf := k.current.Load().leaf
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

// RenewNow replaces the certificate and its key. On an error the present ones
// stay in use.
func (k *Keeper) RenewNow(ctx context.Context) error {
	k.renewal.Lock()
	defer k.renewal.Unlock()
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	old := k.current.Load()
	key, request, err := NewKeyAndRequest(old.identity.Name)
	if err != nil {
		return err
	}
	cert, authority, err := k.renew(ctx, request)
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	if !bytes.Equal(bytes.TrimSpace(authority), bytes.TrimSpace(old.Authority)) {
		return denied("the server renewed with another authority", "enrol again", nil)
	}
	next, err := Credentials{Certificate: cert, Key: key, Authority: old.Authority}.parse()
	if err != nil {
		return err
	}
	if next.identity != old.identity {
		return denied(fmt.Sprintf("the renewed certificate is for %v, not %v", next.identity, old.identity), "", nil)
	}
	if !next.leaf.NotAfter.After(old.leaf.NotAfter) {
		return denied("the renewed certificate does not live longer than the old one", "", nil)
	}
	if err := next.Save(k.dir); err != nil {
		return err
	}
	k.current.Store(next)
	return nil
}

// ServerConfig is for a listener. A client may show a certificate; one that
// is not valid ends the handshake. The caller decides per call who is needed:
// FromConnectionState.
func (k *Keeper) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  k.current.Load().roots, // the same for the keeper's life
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return &k.current.Load().pair, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			_, err := FromConnectionState(state)
			return err
		},
	}
}

// ClientConfig is for dialling a member that must be as expected, whatever
// its address is. A host and a volume server are expected by name, since their
// certificates have no other DNS name.
func (k *Keeper) ClientConfig(expect Expect) *tls.Config {
	name := expect.Name
	switch expect.Kind {
	case Server:
		name = ServerName
	case Volume:
		name = VolumeServerName(expect.Name)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    k.current.Load().roots,
		ServerName: name,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &k.current.Load().pair, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			peer, err := FromConnectionState(state)
			if err != nil {
				return err
			}
			return expect.Check(peer)
		},
	}
}
