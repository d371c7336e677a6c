package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

func keeperOf(t *testing.T, c Credentials, renew Renew) *Keeper {
	t.Helper()
	dir := t.TempDir()
	if err := c.Save(dir); err != nil {
		t.Fatal(err)
	}
	k, err := OpenKeeper(dir, renew, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// meet makes a connection between two configurations. It gives what the
// server learned of the client, and the error of each side.
func meet(t *testing.T, server, client *tls.Config) (peer Identity, serverErr, clientErr error) {
	t.Helper()
	a, b := net.Pipe()
	s, c := tls.Server(a, server), tls.Client(b, client)
	var wait sync.WaitGroup
	wait.Go(func() {
		defer a.Close()
		if serverErr = s.HandshakeContext(t.Context()); serverErr != nil {
			return
		}
		peer, serverErr = FromConnectionState(s.ConnectionState())
		_, _ = s.Write([]byte("x"))
	})
	if clientErr = c.HandshakeContext(t.Context()); clientErr == nil {
		// With TLS 1.3 the client is done before the server has judged its
		// certificate; the first byte tells.
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	b.Close()
	wait.Wait()
	return peer, serverErr, clientErr
}

func TestHandshakes(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	server := keeperOf(t, enrolled(t, a, Identity{Server, "s1"}, 0), nil)
	host := keeperOf(t, enrolled(t, a, Identity{Host, "h1"}, 0), nil)
	user := keeperOf(t, enrolled(t, a, Identity{User, "u1"}, 0), nil)
	volume := keeperOf(t, enrolled(t, a, Identity{Volume, "h1"}, 0), nil)
	alien := keeperOf(t, enrolled(t, stranger, Identity{Host, "h1"}, 0), nil)
	alienServer := keeperOf(t, enrolled(t, stranger, Identity{Server, "s1"}, 0), nil)
	anonymous := &tls.Config{RootCAs: server.current.Load().roots, ServerName: ServerName}
	old := anonymous.Clone()
	old.MaxVersion = tls.VersionTLS12
	toServer := Expect{Kind: Server}
	trusting := alien.ClientConfig(toServer)
	trusting.RootCAs = server.current.Load().roots

	for _, test := range []struct {
		name           string
		server, client *tls.Config
		peer           Identity
		serverErr      string
		clientErr      string
	}{
		{"host to server", server.ServerConfig(), host.ClientConfig(toServer), Identity{Host, "h1"}, "", ""},
		{"user to server", server.ServerConfig(), user.ClientConfig(toServer), Identity{User, "u1"}, "", ""},
		{"host to host", host.ServerConfig(), host.ClientConfig(Expect{Host, "h1"}), Identity{Host, "h1"}, "", ""},
		{"host to volume server", volume.ServerConfig(), host.ClientConfig(Expect{Volume, "h1"}), Identity{Host, "h1"}, "", ""},
		{"volume server as host", volume.ServerConfig(), host.ClientConfig(Expect{Host, "h1"}), Identity{}, "bad certificate", "not h1"},
		{"anonymous", server.ServerConfig(), anonymous, Identity{}, "no certificate", ""},
		{"TLS 1.2", server.ServerConfig(), old, Identity{}, "unsupported versions", "protocol version"},
		{"alien client", server.ServerConfig(), trusting, Identity{}, "unknown authority", "unknown certificate authority"},
		{"alien server", alienServer.ServerConfig(), host.ClientConfig(toServer), Identity{}, "bad certificate", "unknown authority"},
		{"host as server", host.ServerConfig(), host.ClientConfig(toServer), Identity{}, "bad certificate", "not " + ServerName},
		{"user as server", user.ServerConfig(), host.ClientConfig(toServer), Identity{}, "bad certificate", "not valid for any names"},
		{"another host", host.ServerConfig(), server.ClientConfig(Expect{Host, "h2"}), Identity{}, "bad certificate", "not h2"},
		{"another server", server.ServerConfig(), host.ClientConfig(Expect{Server, "s2"}), Identity{}, "bad certificate", "server s1, not server s2"},
		{"token", server.ServerConfig(), NewToken(a.Fingerprint()).ClientConfig(), Identity{}, "no certificate", ""},
		{"token of another fleet", server.ServerConfig(), NewToken(stranger.Fingerprint()).ClientConfig(), Identity{}, "bad certificate", "not of the fleet"},
		{"token at a host", host.ServerConfig(), NewToken(a.Fingerprint()).ClientConfig(), Identity{}, "bad certificate", "not of the fleet"},
	} {
		t.Run(test.name, func(t *testing.T) {
			peer, serverErr, clientErr := meet(t, test.server, test.client)
			if peer != test.peer {
				t.Errorf("peer %v, want %v", peer, test.peer)
			}
			wantText(t, "server", serverErr, test.serverErr)
			wantText(t, "client", clientErr, test.clientErr)
		})
	}
}

func wantText(t *testing.T, who string, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("%s: %v", who, err)
	case text != "" && (err == nil || !strings.Contains(err.Error(), text)):
		t.Errorf("%s: error %v, want one with %q", who, err, text)
	}
}

func TestExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		server := keeperOf(t, enrolled(t, a, Identity{Server, "s1"}, 48*time.Hour), nil)
		host := keeperOf(t, enrolled(t, a, Identity{Host, "h1"}, time.Hour), nil)
		client := host.ClientConfig(Expect{Kind: Server})
		if _, serverErr, clientErr := meet(t, server.ServerConfig(), client); serverErr != nil || clientErr != nil {
			t.Fatal(serverErr, clientErr)
		}
		time.Sleep(time.Hour + time.Second) // virtual
		_, serverErr, clientErr := meet(t, server.ServerConfig(), client)
		wantText(t, "server", serverErr, "expired")
		wantText(t, "client", clientErr, "expired")
		_, err := OpenKeeper(host.dir, nil, nil)
		wantCode(t, err, fleet.Denied)
		wantText(t, "keeper", err, "expired at")
	})
}

// An identity counts only after a handshake that verified it.
func TestIdentityNeedsVerification(t *testing.T) {
	p, err := enrolled(t, newAuthority(t), Identity{Admin, "root"}, 0).parse()
	if err != nil {
		t.Fatal(err)
	}
	_, err = FromConnectionState(tls.ConnectionState{PeerCertificates: []*x509.Certificate{p.leaf}})
	wantCode(t, err, fleet.Denied)
}

func renewBy(a *Authority, id Identity, validity time.Duration) Renew {
	return func(_ context.Context, request []byte) ([]byte, []byte, error) {
		cert, err := a.Sign(request, id, Names{}, validity, time.Now())
		return cert, a.CertificatePEM(), err
	}
}

func TestRenewalAtTwoThirds(t *testing.T) {
	for _, validity := range []time.Duration{24 * time.Hour, time.Hour, time.Minute} {
		t.Run(validity.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, id := newAuthority(t), Identity{Host, "h1"}
				var renewed []time.Time
				renew := renewBy(a, id, validity)
				k := keeperOf(t, enrolled(t, a, id, validity), func(ctx context.Context, request []byte) ([]byte, []byte, error) {
					renewed = append(renewed, time.Now())
					return renew(ctx, request)
				})
				first, began := k.Credentials(), time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 4*validity)
				defer cancel()
				if err := k.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
					t.Fatal(err)
				}
				if len(renewed) < 4 || len(renewed) > 7 {
					t.Fatalf("renewed %d times in four lives", len(renewed))
				}
				if at := renewed[0].Sub(began); at < validity/2 || at > validity*2/3+time.Second {
					t.Errorf("first renewed after %v", at)
				}
				onDisk, err := Load(k.dir)
				if err != nil {
					t.Fatal(err)
				}
				now := k.Credentials()
				if string(onDisk.Certificate) != string(now.Certificate) || string(onDisk.Key) != string(now.Key) {
					t.Error("the folder has other credentials than the process")
				}
				if string(now.Key) == string(first.Key) {
					t.Error("the key is still the old one")
				}
			})
		})
	}
}

// While the server is away the old certificate stays in use, attempts become
// rare, and the first that succeeds ends them.
func TestRenewalBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, id := newAuthority(t), Identity{Host, "h1"}
		var attempts []time.Time
		back := time.Now().Add(18 * time.Hour) // after two hours of failures
		renew := renewBy(a, id, 24*time.Hour)
		first := enrolled(t, a, id, 24*time.Hour)
		var k *Keeper
		k = keeperOf(t, first, func(ctx context.Context, request []byte) ([]byte, []byte, error) {
			attempts = append(attempts, time.Now())
			if time.Now().Before(back) {
				if string(k.Credentials().Certificate) != string(first.Certificate) {
					t.Error("the certificate has changed without a renewal")
				}
				return nil, nil, errors.New("server is away")
			}
			return renew(ctx, request)
		})
		ctx, cancel := context.WithDeadline(t.Context(), back.Add(10*time.Minute))
		defer cancel()
		if err := k.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if n := len(attempts); n < 20 || n > 40 {
			t.Errorf("%d attempts in two hours", n)
		}
		for i := 1; i < len(attempts); i++ {
			if gap := attempts[i].Sub(attempts[i-1]); gap < time.Second || gap > renewBackoffMax*5/4 {
				t.Errorf("attempt %d after %v", i, gap)
			}
		}
		if last := attempts[len(attempts)-1]; last.Before(back) || attempts[len(attempts)-2].After(back) {
			t.Error("not exactly one attempt after the server came back")
		}
		if k.NotAfter().Before(back.Add(23 * time.Hour)) {
			t.Error("not renewed after the server came back")
		}
	})
}

func TestRenewalRefusesWhatDoesNotFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, stranger, id := newAuthority(t), newAuthority(t), Identity{Host, "h1"}
		current := enrolled(t, a, id, time.Hour)
		for name, renew := range map[string]Renew{
			"another authority": renewBy(stranger, id, time.Hour),
			"another name":      renewBy(a, Identity{Host, "h2"}, time.Hour),
			"another kind":      renewBy(a, Identity{Admin, "h1"}, time.Hour),
			"a shorter life":    renewBy(a, id, time.Minute),
			"another key": func(context.Context, []byte) ([]byte, []byte, error) {
				return current.Certificate, a.CertificatePEM(), nil
			},
			"signed by a stranger": func(ctx context.Context, request []byte) ([]byte, []byte, error) {
				cert, _, err := renewBy(stranger, id, time.Hour)(ctx, request)
				return cert, a.CertificatePEM(), err
			},
			"an error": func(context.Context, []byte) ([]byte, []byte, error) { return nil, nil, errors.New("no") },
		} {
			k := keeperOf(t, current, renew)
			time.Sleep(time.Second) // virtual
			if err := k.RenewNow(t.Context()); err == nil {
				t.Errorf("%s was accepted", name)
			}
			loaded, err := Load(k.dir)
			if err != nil || string(loaded.Certificate) != string(current.Certificate) || string(k.Credentials().Key) != string(current.Key) {
				t.Errorf("%s: the credentials have changed, %v", name, err)
			}
		}
	})
}

// Handshakes go on while certificates are swapped on both sides.
func TestHandshakesDuringRenewals(t *testing.T) {
	a := newAuthority(t)
	longer := func(id Identity) Renew {
		validity := time.Hour
		return func(ctx context.Context, request []byte) ([]byte, []byte, error) {
			validity += time.Minute
			return renewBy(a, id, validity)(ctx, request)
		}
	}
	serverID, hostID := Identity{Server, "s1"}, Identity{Host, "h1"}
	server := keeperOf(t, enrolled(t, a, serverID, time.Hour), longer(serverID))
	host := keeperOf(t, enrolled(t, a, hostID, time.Hour), longer(hostID))
	serving, dialling := server.ServerConfig(), host.ClientConfig(Expect{Kind: Server})
	var wait sync.WaitGroup
	for _, k := range []*Keeper{server, host} {
		wait.Go(func() {
			for range 20 {
				if err := k.RenewNow(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 4 {
		wait.Go(func() {
			for range 20 {
				if peer, serverErr, clientErr := meet(t, serving, dialling); peer != hostID || serverErr != nil || clientErr != nil {
					t.Error(peer, serverErr, clientErr)
				}
			}
		})
	}
	wait.Wait()
}
