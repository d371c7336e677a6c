package server

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/wire"
)

// calls tries one method of each service; the answers themselves may be errors.
var calls = []struct {
	service string
	call    func(ctx context.Context, client *http.Client, url string, options connect.ClientOption) error
}{
	{"vm", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewVMServiceClient(c, url, o).List(ctx, &godwitv1.ListVMsRequest{})
		return err
	}},
	{"vm watch", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		stream, err := godwitv1connect.NewVMServiceClient(c, url, o).Watch(ctx, &godwitv1.WatchVMsRequest{})
		if err != nil {
			return err
		}
		defer stream.Close()
		for stream.Receive() {
		}
		return stream.Err() // an admitted watch lasts until the deadline
	}},
	{"host", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewHostServiceClient(c, url, o).List(ctx, &godwitv1.ListHostsRequest{})
		return err
	}},
	{"token", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewHostServiceClient(c, url, o).CreateToken(ctx, &godwitv1.CreateTokenRequest{Host: "h9"})
		return err
	}},
	{"network", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewNetworkServiceClient(c, url, o).List(ctx, &godwitv1.ListNetworksRequest{})
		return err
	}},
	{"migration", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewMigrationServiceClient(c, url, o).List(ctx, &godwitv1.ListMigrationsRequest{})
		return err
	}},
	{"commit", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := askCommit(ctx, godwitv1connect.NewAgentServiceClient(c, url, o), &godwitv1.CommitRequest{Migration: "m-none"})
		if err != nil && strings.Contains(err.Error(), "m-none") {
			return nil // admitted, and refused as a commit
		}
		return err
	}},
	{"session", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := godwitv1connect.NewAgentServiceClient(c, url, o).Session(ctx)
		if err != nil {
			return err
		}
		_ = stream.Send(&godwitv1.SessionRequest{Message: &godwitv1.SessionRequest_Hello{Hello: &godwitv1.Hello{Host: testHost("h1")}}})
		_, err = stream.Receive()
		return err
	}},
	{"volume servers", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewVolumeServerServiceClient(c, url, o).List(ctx, &godwitv1.ListVolumeServersRequest{})
		return err
	}},
	{"announce", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewVolumeServerServiceClient(c, url, o).Announce(ctx, &godwitv1.AnnounceVolumeServerRequest{})
		return err
	}},
	{"enrol", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewEnrollServiceClient(c, url, o).Enroll(ctx, &godwitv1.EnrollRequest{})
		return err
	}},
	{"renew", func(ctx context.Context, c *http.Client, url string, o connect.ClientOption) error {
		_, err := godwitv1connect.NewEnrollServiceClient(c, url, o).Renew(ctx, &godwitv1.RenewRequest{})
		return err
	}},
}

func TestWhoMayCallWhat(t *testing.T) {
	f := newFleet(t)
	member := func(kind pki.Kind, name string) *http.Client {
		return f.client(f.clientConfig(f.keeper(pki.Identity{Kind: kind, Name: name}, 0)))
	}
	api := "vm, vm watch, host, token, network, migration, volume servers"
	callers := []struct {
		who     string
		client  *http.Client
		url     string
		allowed string
	}{
		{"admin", member(pki.Admin, "root"), f.url(), api + ", enrol, renew"},
		{"host", member(pki.Host, "h1"), f.url(), "commit, session, enrol, renew"},
		{"user", member(pki.User, "alice"), f.url(), "enrol, renew"},
		{"server", member(pki.Server, "other"), f.url(), "enrol, renew"},
		{"volume server", member(pki.Volume, "v1"), f.url(), "announce, enrol, renew"},
		{"nobody", f.client(nil), f.url(), "enrol"},
		{"socket", f.socketClient(), "http://godwit", api + ", enrol"},
	}
	for _, caller := range callers {
		var allowed []string
		for _, one := range calls {
			if caller.who == "socket" && (one.service == "session" || one.service == "commit") {
				continue // they need HTTP/2, which this client does not speak without TLS
			}
			err := one.call(t.Context(), caller.client, caller.url, connect.WithInterceptors(wire.ClientInterceptor(caller.url)))
			if fleet.CodeOf(err) != fleet.Denied {
				allowed = append(allowed, one.service)
			}
		}
		if got := strings.Join(allowed, ", "); got != caller.allowed {
			t.Errorf("%s may call %s; want %s", caller.who, got, caller.allowed)
		}
	}
}

func TestSocketSpeaksPlainJSON(t *testing.T) {
	f := newFleet(t)
	info, err := os.Stat(f.server.config.Socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket %v, %v", info, err)
	}
	post := func(path, body string) string {
		response, err := f.socketClient().Post("http://godwit/godwit.v1."+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.Status + " " + string(text)
	}
	if got := post("VMService/List", "{}"); got != "200 OK {}" {
		t.Errorf("list: %s", got)
	}
	if got := post("VMService/Get", `{"name":"web1"}`); !strings.HasPrefix(got, "404") || !strings.Contains(got, "there is no vm of that name") {
		t.Errorf("get: %s", got)
	}
	f.stop()
	if _, err := os.Stat(f.server.config.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

func TestSecondServerOnTheSocketIsRefused(t *testing.T) {
	f := newFleet(t)
	_, err := New(t.Context(), Config{
		Store: f.store, DataDir: t.TempDir(), Listen: "127.0.0.1:0", Socket: f.server.config.Socket,
	})
	if fleet.CodeOf(err) != fleet.Failed || !strings.Contains(err.Error(), "another server") {
		t.Errorf("got %v", err)
	}
	_, err = New(t.Context(), Config{
		Store: f.store, DataDir: t.TempDir(), Listen: f.server.Addr().String(), Socket: filepath.Join(f.dir, "other.sock"),
	})
	if fleet.CodeOf(err) != fleet.Failed || fleet.HintOf(err) == "" {
		t.Errorf("a used address: %v", err)
	}
}

func TestTokensWorkOnce(t *testing.T) {
	f := newFleet(t)
	token := f.token("h1")
	if _, err := f.enrol("h2", token); fleet.CodeOf(err) != fleet.Denied || !strings.Contains(err.Error(), "another host") {
		t.Errorf("for another host: %v", err)
	}
	credentials, err := f.enrol("h1", token)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.enrol("h1", token); fleet.CodeOf(err) != fleet.Denied || !strings.Contains(err.Error(), "used already") {
		t.Errorf("used again: %v", err)
	}
	unknown := pki.NewToken(f.server.authority.Fingerprint()).Text()
	if _, err := f.enrol("h1", unknown); fleet.CodeOf(err) != fleet.Denied {
		t.Errorf("unknown: %v", err)
	}
	dir := t.TempDir()
	if err := credentials.Save(dir); err != nil {
		t.Fatal(err)
	}
	keeper, err := pki.OpenKeeper(dir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.join("h1", func(o *agentOptions) { o.keeper = keeper })
}

// Two that use a token at the same time must not both get a certificate.
func TestTokenIsSpentByOneOfMany(t *testing.T) {
	f := newFleet(t)
	token := f.token("h1")
	results := make(chan error)
	const many = 8
	for range many {
		go func() {
			_, err := f.enrol("h1", token)
			results <- err
		}()
	}
	won := 0
	for range many {
		if err := <-results; err == nil {
			won++
		} else if fleet.CodeOf(err) != fleet.Denied {
			t.Errorf("refused with %v", err)
		}
	}
	if won != 1 {
		t.Errorf("%d got a certificate", won)
	}
}

func TestRenewKeepsTheIdentity(t *testing.T) {
	f := newFleet(t)
	keeper := f.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}, time.Hour)
	client := godwitv1connect.NewEnrollServiceClient(f.client(f.clientConfig(keeper)), f.url())
	_, request, err := pki.NewKeyAndRequest("somebody-else")
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Renew(t.Context(), &godwitv1.RenewRequest{CertificateRequest: derOf(request)})
	if err != nil {
		t.Fatal(err)
	}
	cert := parseCertificate(t, response.GetCertificate())
	if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://godwit/host/h1" {
		t.Errorf("identities %v", cert.URIs)
	}
}

func TestExpiredCertificateIsRefused(t *testing.T) {
	f := newFleet(t)
	keeper := f.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}, time.Second)
	// Certificates have whole seconds; wait for this one's last to be over.
	<-time.After(time.Until(keeper.NotAfter().Add(time.Second)))
	_, err := f.tryJoin("h1", func(o *agentOptions) { o.keeper = keeper })
	if fleet.CodeOf(err) != fleet.Denied || !strings.Contains(err.Error(), "it is valid from") || !strings.Contains(fleet.HintOf(err), "enrol the host again") {
		t.Errorf("got %v (%s), hint %q", err, fleet.CodeOf(err), fleet.HintOf(err))
	}
}

func TestCertificateOfAnotherFleetIsRefused(t *testing.T) {
	f, other := newFleet(t), newFleet(t)
	stranger := other.keeper(pki.Identity{Kind: pki.Admin, Name: "admin"}, 0)
	config := other.clientConfig(stranger)
	config.RootCAs = x509.NewCertPool()
	config.RootCAs.AppendCertsFromPEM(f.server.authority.CertificatePEM())
	client := f.client(config)
	for _, one := range calls {
		if one.service == "enrol" {
			continue // decides by the token only
		}
		err := one.call(t.Context(), client, f.url(), connect.WithInterceptors(wire.ClientInterceptor(f.url())))
		if fleet.CodeOf(err) != fleet.Denied || !strings.Contains(err.Error(), "not valid in this fleet") {
			t.Errorf("%s: %v", one.service, err)
		}
	}
}

func TestAuthorityOutlivesTheServer(t *testing.T) {
	f := newFleet(t)
	before := f.server.authority.Fingerprint()
	keeper := f.keeper(pki.Identity{Kind: pki.Host, Name: "h1"}, 0)
	f.stop()
	f.start()
	if f.server.authority.Fingerprint() != before {
		t.Error("the authority has changed")
	}
	f.join("h1", func(o *agentOptions) { o.keeper = keeper })
	for _, name := range []string{"ca.pem", "cert.pem", "key.pem"} {
		info, err := os.Stat(filepath.Join(f.dir, "data", "admin", name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// A token is for what it was made for: a volume server's gives no host's
// certificate, and a host's no volume server's.
func TestTokensOfKinds(t *testing.T) {
	f := newFleet(t)
	volume := pki.Identity{Kind: pki.Volume, Name: "v1"}
	token := func(id pki.Identity) string {
		response, err := f.hosts.CreateToken(t.Context(), &godwitv1.CreateTokenRequest{Kind: string(id.Kind), Host: id.Name})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetToken()
	}
	made := token(volume)
	for name, spend := range map[string]func() (pki.Credentials, error){
		"as a host":     func() (pki.Credentials, error) { return f.enrol("v1", made) },
		"a host's":      func() (pki.Credentials, error) { return f.enrolAs(volume, f.token("v1")) },
		"another's":     func() (pki.Credentials, error) { return f.enrolAs(pki.Identity{Kind: pki.Volume, Name: "v2"}, made) },
		"as the server": func() (pki.Credentials, error) { return f.enrolAs(pki.Identity{Kind: pki.Server, Name: "v1"}, made) },
	} {
		if _, err := spend(); err == nil {
			t.Errorf("%s it was accepted", name)
		}
	}
	credentials, err := f.enrolAs(volume, made)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := credentials.Save(dir); err != nil {
		t.Fatal(err)
	}
	keeper, err := pki.OpenKeeper(dir, nil, nil)
	if err != nil || keeper.Identity() != volume {
		t.Errorf("%v is what came of it, %v", keeper.Identity(), err)
	}
}
