package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// testFleet is a server on a real store, with clients that reach it by TLS.
type testFleet struct {
	t      *testing.T
	server *Server
	dir    string
	store  *store.Store
	stop   func() // ends the server and waits for it

	vms      godwitv1connect.VMServiceClient
	hosts    godwitv1connect.HostServiceClient
	networks godwitv1connect.NetworkServiceClient
	moves    godwitv1connect.MigrationServiceClient
}

func newFleet(t *testing.T, edit ...func(*Config)) *testFleet {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw") // short: the socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	opened, err := store.Open(t.Context(), store.Config{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	f := &testFleet{t: t, dir: dir, store: opened}
	f.start(edit...)
	return f
}

// start runs a server on the fleet's store, for the first time or again.
func (f *testFleet) start(edit ...func(*Config)) {
	f.t.Helper()
	config := Config{
		Store: f.store, DataDir: filepath.Join(f.dir, "data"),
		Listen: "127.0.0.1:0", Socket: filepath.Join(f.dir, "s.sock"),
		Logger: slog.New(slog.NewTextHandler(f.t.Output(), nil)),
	}
	for _, e := range edit {
		e(&config)
	}
	server, err := New(f.t.Context(), config)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	var once sync.Once
	f.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				f.t.Errorf("server: %v", err)
			}
		})
	}
	f.t.Cleanup(f.stop)
	f.server = server
	admin := f.client(f.clientConfig(server.admin))
	url := f.url()
	options := connect.WithInterceptors(wire.ClientInterceptor(url))
	f.vms = godwitv1connect.NewVMServiceClient(admin, url, options)
	f.hosts = godwitv1connect.NewHostServiceClient(admin, url, options)
	f.networks = godwitv1connect.NewNetworkServiceClient(admin, url, options)
	f.moves = godwitv1connect.NewMigrationServiceClient(admin, url, options)
}

func (f *testFleet) url() string { return "https://" + f.server.Addr().String() }

func (f *testFleet) clientConfig(keeper *pki.Keeper) *tls.Config {
	return keeper.ClientConfig(pki.Expect{Kind: pki.Server})
}

// client is an HTTP/2 client; nil is one without a certificate.
func (f *testFleet) client(config *tls.Config) *http.Client {
	if config == nil {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(f.server.authority.CertificatePEM())
		config = &tls.Config{RootCAs: roots, ServerName: pki.ServerName}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	f.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// socketClient is a client of the Unix socket.
func (f *testFleet) socketClient() *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", f.server.config.Socket)
	}}
	f.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// keeper gives a member of that identity its certificate.
func (f *testFleet) keeper(id pki.Identity, validity time.Duration) *pki.Keeper {
	f.t.Helper()
	keeper, err := keepCertificate(f.t.TempDir(), f.server.authority, id, pki.Names{}, validity, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return keeper
}

// enrol spends a token for a host, as an agent does.
func (f *testFleet) enrol(host, token string) (pki.Credentials, error) {
	f.t.Helper()
	return f.enrolAs(pki.Identity{Kind: pki.Host, Name: host}, token)
}

func (f *testFleet) enrolAs(id pki.Identity, token string) (pki.Credentials, error) {
	f.t.Helper()
	parsed, err := pki.ParseToken(token)
	if err != nil {
		f.t.Fatal(err)
	}
	key, request, err := pki.NewKeyAndRequest(id.Name)
	if err != nil {
		f.t.Fatal(err)
	}
	client := godwitv1connect.NewEnrollServiceClient(f.client(parsed.ClientConfig()), f.url(),
		connect.WithInterceptors(wire.ClientInterceptor(f.url())))
	response, err := client.Enroll(f.t.Context(), &godwitv1.EnrollRequest{Kind: string(id.Kind), Host: id.Name, Token: token, CertificateRequest: derOf(request)})
	if err != nil {
		return pki.Credentials{}, err
	}
	text := func(der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}) }
	return pki.Credentials{Certificate: text(response.GetCertificate()), Key: key, Authority: text(response.GetAuthority())}, nil
}

func (f *testFleet) token(host string) string {
	f.t.Helper()
	response, err := f.hosts.CreateToken(f.t.Context(), &godwitv1.CreateTokenRequest{Host: host})
	if err != nil {
		f.t.Fatal(err)
	}
	return response.GetToken()
}

// network makes a network with a subnet.
func (f *testFleet) network(name, subnet string) *godwitv1.Network {
	f.t.Helper()
	response, err := f.networks.Create(f.t.Context(), &godwitv1.CreateNetworkRequest{
		Network: &godwitv1.Network{Name: name, Subnets: []string{subnet}},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return response.GetNetwork()
}

func smallSpec(networks ...string) *godwitv1.VMSpec {
	spec := &godwitv1.VMSpec{
		Cpus: 1, MemoryBytes: uint64(128 * fleet.MiB),
		Boot: &godwitv1.Boot{Kernel: "/boot/vmlinuz"},
	}
	for i, network := range networks {
		spec.Ports = append(spec.Ports, &godwitv1.Port{Name: "net" + string(rune('0'+i)), Network: network})
	}
	return spec
}

// create makes a VM, started by default.
func (f *testFleet) create(request *godwitv1.CreateVMRequest) *godwitv1.VM {
	f.t.Helper()
	response, err := f.vms.Create(f.t.Context(), request)
	if err != nil {
		f.t.Fatalf("create %s: %v", request.GetName(), describe(err))
	}
	return response.GetVm()
}

func (f *testFleet) vm(name string) *godwitv1.VM {
	f.t.Helper()
	response, err := f.vms.Get(f.t.Context(), &godwitv1.GetVMRequest{Name: name})
	if err != nil {
		f.t.Fatal(err)
	}
	return response.GetVm()
}

// awaitVM follows a VM until it is as wanted.
func (f *testFleet) awaitVM(name string, what string, wanted func(*godwitv1.VM) bool) *godwitv1.VM {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	stream, err := f.vms.Watch(ctx, &godwitv1.WatchVMsRequest{Name: name})
	if err != nil {
		f.t.Fatal(err)
	}
	defer stream.Close()
	var last *godwitv1.VM
	for stream.Receive() {
		if last = stream.Msg().GetVm(); wanted(last) {
			return last
		}
	}
	f.t.Fatalf("vm %s is not %s: %v; %v", name, what, last, stream.Err())
	return nil
}

func (f *testFleet) awaitPhase(name string, phase fleet.VMPhase) *godwitv1.VM {
	f.t.Helper()
	return f.awaitVM(name, string(phase), func(vm *godwitv1.VM) bool { return vm.GetPhase() == string(phase) })
}

// awaitHost waits until the server shows a host in a state.
func (f *testFleet) reserved(host string) (cpus int32, memory uint64) {
	f.t.Helper()
	response, err := f.hosts.Get(f.t.Context(), &godwitv1.GetHostRequest{Name: host})
	if err != nil {
		f.t.Fatal(err)
	}
	return response.GetHost().GetCpusReserved(), response.GetHost().GetMemoryReservedBytes()
}

// describe spells an error with its fields.
func describe(err error) string {
	if err == nil {
		return "no error"
	}
	text := err.Error()
	for _, field := range fieldsOf(err) {
		text += "\n  " + field.Path + ": " + field.Problem
	}
	return text
}
