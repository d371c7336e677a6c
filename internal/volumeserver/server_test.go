package volumeserver

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volume"
)

// lab is a volume server "v1" with all that its clients need.
type lab struct {
	t         *testing.T
	authority *pki.Authority
	nbd       net.Addr
	control   net.Addr
	run       string
	local     *client.VolumeServer // by the socket
}

func newLab(t *testing.T) *lab {
	t.Helper()
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// The path of a socket must be short, so it can't be in the test's folder.
	run, err := os.MkdirTemp("", "vol")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	l := &lab{t: t, authority: authority, run: run}
	server, err := New(t.Context(), Config{
		Dir: t.TempDir(), Keeper: l.keeper(pki.Identity{Kind: pki.Volume, Name: "v1"}),
		Listen: "127.0.0.1:0", Control: "127.0.0.1:0", Run: run, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	l.nbd, l.control = server.Addresses()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if l.local, err = client.DialVolumeServer(client.Config{Server: "unix://" + run + "/" + controlSocket}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.local.Close)
	return l
}

// credentials are those of a new member, in a folder.
func (l *lab) credentials(id pki.Identity) string {
	l.t.Helper()
	key, request, err := pki.NewKeyAndRequest(id.Name)
	if err != nil {
		l.t.Fatal(err)
	}
	cert, err := l.authority.Sign(request, id, pki.Names{}, 0, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	dir := l.t.TempDir()
	credentials := pki.Credentials{Certificate: cert, Key: key, Authority: l.authority.CertificatePEM()}
	if err := credentials.Save(dir); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

func (l *lab) keeper(id pki.Identity) *pki.Keeper {
	l.t.Helper()
	keeper, err := pki.OpenKeeper(l.credentials(id), nil, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return keeper
}

// qemuCredentials gives the folder that QEMU's programs read.
func (l *lab) qemuCredentials(id pki.Identity) string {
	l.t.Helper()
	credentials, err := pki.Load(l.credentials(id))
	if err != nil {
		l.t.Fatal(err)
	}
	dir := l.t.TempDir()
	if err := credentials.WriteQEMUCreds(dir); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// member gives a client that shows the certificate of that identity.
func (l *lab) member(id pki.Identity) *client.VolumeServer {
	l.t.Helper()
	return l.dial(l.keeper(id).ClientConfig(pki.Expect{Kind: pki.Volume, Name: "v1"}))
}

func (l *lab) dial(config *tls.Config) *client.VolumeServer {
	l.t.Helper()
	c, err := client.DialVolumeServer(client.Config{Server: "https://" + l.control.String(), TLS: config})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(c.Close)
	return c
}

func (l *lab) create(name string, size fleet.Bytes) {
	l.t.Helper()
	if _, err := l.local.Create(l.t.Context(), &godwitv1.CreateVolumeRequest{Name: name, SizeBytes: uint64(size)}); err != nil {
		l.t.Fatal(err)
	}
}

var secret = []byte("what goes with the commit, or the start")

func (l *lab) grant(name, host string, epoch uint64) {
	l.t.Helper()
	if _, err := l.local.Grant(l.t.Context(), grantOf(name, host, epoch)); err != nil {
		l.t.Fatal(err)
	}
}

func grantOf(name, host string, epoch uint64) *godwitv1.GrantLeaseRequest {
	return &godwitv1.GrantLeaseRequest{Volume: name, Host: host, Epoch: epoch, KeyHash: string(volume.HashKey(secret))}
}

// Who may manage, who may only take up the lease that is theirs, and who
// nothing.
func TestWhoMayCallWhat(t *testing.T) {
	l := newLab(t)
	l.create("v", fleet.MiB)
	activate := func(c *client.VolumeServer, host string, epoch uint64) error {
		_, err := c.Activate(t.Context(), &godwitv1.ActivateLeasesRequest{Volumes: []string{"v"}, Host: host, Epoch: epoch, Key: secret})
		return err
	}
	list := func(c *client.VolumeServer) error {
		_, err := c.List(t.Context(), &godwitv1.ListVolumesRequest{})
		return err
	}
	host1, host2 := l.member(pki.Identity{Kind: pki.Host, Name: "h1"}), l.member(pki.Identity{Kind: pki.Host, Name: "h2"})
	for name, ruler := range map[string]*client.VolumeServer{
		"socket": l.local, "admin": l.member(pki.Identity{Kind: pki.Admin, Name: "root"}), "server": l.member(pki.Identity{Kind: pki.Server, Name: "server"}),
	} {
		if err := list(ruler); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, other := range map[string]*client.VolumeServer{
		"host": host1, "user": l.member(pki.Identity{Kind: pki.User, Name: "u"}), "volume server": l.member(pki.Identity{Kind: pki.Volume, Name: "v2"}),
	} {
		for call, err := range map[string]error{"list": list(other), "grant": errOf(other.Grant(t.Context(), grantOf("v", "h1", 1)))} {
			if fleet.CodeOf(err) != fleet.Denied {
				t.Errorf("%s, %s: %v", name, call, err)
			}
		}
	}
	l.grant("v", "h1", 1)
	for name, err := range map[string]error{"of another host": activate(host2, "", 1), "for another host": activate(host2, "h1", 1)} {
		if fleet.CodeOf(err) != fleet.Denied {
			t.Errorf("activation %s: %v", name, err)
		}
	}
	for range 2 { // a repetition is answered the same
		if err := activate(host1, "", 1); err != nil {
			t.Error(err)
		}
	}
	l.grant("v", "h2", 2)
	if err := activate(l.member(pki.Identity{Kind: pki.Server, Name: "server"}), "h2", 2); err != nil {
		t.Error(err)
	}
	if err := activate(host1, "", 1); fleet.CodeOf(err) != fleet.Conflict {
		t.Errorf("an older epoch: %v", err)
	}
}

func errOf[T any](_ T, err error) error { return err }

// Without a certificate of this fleet there is no connection.
func TestStrangers(t *testing.T) {
	l := newLab(t)
	stranger := newLab(t)
	config := stranger.keeper(pki.Identity{Kind: pki.Admin, Name: "root"}).ClientConfig(pki.Expect{})
	config.InsecureSkipVerify, config.VerifyConnection = true, nil
	for name, c := range map[string]*client.VolumeServer{
		"without a certificate": l.dial(&tls.Config{InsecureSkipVerify: true}), "of another fleet": l.dial(config),
	} {
		if _, err := c.List(t.Context(), &godwitv1.ListVolumesRequest{}); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSecondServer(t *testing.T) {
	l := newLab(t)
	config := Config{
		Dir: t.TempDir(), Keeper: l.keeper(pki.Identity{Kind: pki.Volume, Name: "v1"}),
		Listen: "127.0.0.1:0", Control: "127.0.0.1:0", Run: l.run, Log: slog.New(slog.DiscardHandler),
	}
	for name, change := range map[string]func(*Config){
		"sockets": func(*Config) {},
		"port":    func(c *Config) { c.Run, c.Listen = filepath.Join(t.TempDir(), "r"), l.nbd.String() },
	} {
		second := config
		change(&second)
		if _, err := New(t.Context(), second); fleet.CodeOf(err) != fleet.Failed || fleet.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := l.local.List(t.Context(), &godwitv1.ListVolumesRequest{}); err != nil {
		t.Errorf("the first one suffered: %v", err)
	}
}
