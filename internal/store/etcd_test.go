package store_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"godwit.dev/godwit/internal/lab/etcdtls"
	"godwit.dev/godwit/internal/store"
)

// The test binary runs itself as other processes, so that they can be killed.
const (
	roleVariable = "GODWIT_STORE_TEST_ROLE" // "etcd" or "holder"
	dirVariable  = "GODWIT_STORE_TEST_DIR"
	addrVariable = "GODWIT_STORE_TEST_ADDRESS"
	tlsVariable  = "GODWIT_STORE_TEST_TLS" // etcd's certificates, as JSON; empty for plain text
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "etcd":
		exitWith(runEtcd(os.Getenv(dirVariable), os.Getenv(addrVariable)))
	case "holder":
		exitWith(runHolder(os.Getenv(dirVariable), os.Getenv(addrVariable)))
	}
	goleak.VerifyTestMain(m, leaksOfEtcd()...)
}

// leaksOfEtcd are goroutines that a server which could not start, or stood
// still, leaves behind. A Store that was not closed has many others.
func leaksOfEtcd() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreTopFunction("go.etcd.io/etcd/server/v3/storage/backend.(*backend).run"),
		goleak.IgnoreTopFunction("go.etcd.io/etcd/server/v3/storage/wal.(*filePipeline).run"),
		goleak.IgnoreAnyFunction("godwit.dev/godwit/internal/store.(*fatalHook).OnWrite"),
	}
}

func exitWith(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runEtcd is a stand-alone etcd of one member. It prints its address when it
// is ready, and ends with its standard input, which is its parent's life.
func runEtcd(dir, address string) error {
	c := embed.NewConfig()
	c.Dir = dir
	c.InitialClusterToken = dir // the cluster's identity is derived from it
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.ListenPeerUrls = nil
	scheme := "http"
	if text := os.Getenv(tlsVariable); text != "" {
		var files etcdtls.Files
		if err := json.Unmarshal([]byte(text), &files); err != nil {
			return err
		}
		scheme = "https"
		c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = files.CA, true
		c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = files.MemberCert, files.MemberKey
	}
	c.ListenClientUrls = []url.URL{{Scheme: scheme, Host: address}}
	c.AdvertiseClientUrls = c.ListenClientUrls
	c.TickMs, c.ElectionMs = 20, 100
	c.QuotaBackendBytes = testQuota
	c.UnsafeNoFsync = false
	server, err := embed.StartEtcd(c)
	if err != nil {
		return err
	}
	<-server.Server.ReadyNotify()
	fmt.Println(scheme + "://" + server.Clients[0].Addr().String())
	_, _ = io.Copy(io.Discard, os.Stdin)
	server.Close()
	return nil
}

// process is a running copy of the test binary.
type process struct {
	command *exec.Cmd
	stdin   io.WriteCloser
	hello   string // first line it printed
	killing sync.Once
}

// launch starts the test binary in a role and waits for its first line.
func launch(tb testing.TB, role, dir, address string, env ...string) *process {
	tb.Helper()
	p := &process{command: exec.Command(os.Args[0])}
	p.command.Env = append(os.Environ(), roleVariable+"="+role, dirVariable+"="+dir, addrVariable+"="+address)
	p.command.Env = append(p.command.Env, env...)
	p.command.Stderr = os.Stderr
	stdin, err := p.command.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	p.stdin = stdin
	stdout, err := p.command.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	p.hello = strings.TrimSpace(line)
	if err != nil || strings.HasPrefix(p.hello, "error:") {
		tb.Fatalf("%s did not start: %q, %v", role, p.hello, err)
	}
	return p
}

// kill ends the process with SIGKILL and waits for its end.
func (p *process) kill() {
	p.killing.Do(func() {
		_ = p.command.Process.Kill()
		_ = p.command.Wait()
	})
}

// cluster is an etcd in a process of its own, outside of the Store.
type cluster struct {
	dir     string
	address string // host:port, the same over restarts
	env     []string
	process *process
}

func startCluster(tb testing.TB) *cluster {
	tb.Helper()
	c := &cluster{dir: tb.TempDir(), address: "127.0.0.1:0"}
	c.start(tb)
	return c
}

// startSecureCluster is startCluster with TLS, where clients need a certificate.
func startSecureCluster(tb testing.TB) (*cluster, etcdtls.Files) {
	tb.Helper()
	files, err := etcdtls.Make(tb.TempDir(), netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		tb.Fatal(err)
	}
	text, err := json.Marshal(files)
	if err != nil {
		tb.Fatal(err)
	}
	c := &cluster{dir: tb.TempDir(), address: "127.0.0.1:0", env: []string{tlsVariable + "=" + string(text)}}
	c.start(tb)
	return c, files
}

func (c *cluster) start(tb testing.TB) {
	tb.Helper()
	c.process = launch(tb, "etcd", c.dir, c.address, c.env...)
	_, c.address, _ = strings.Cut(c.process.hello, "://")
}

func (c *cluster) config() store.Config {
	return store.Config{Endpoints: []string{"http://" + c.address}, LeaderTTL: leaderTTL}
}

func open(tb testing.TB, config store.Config) *store.Store {
	tb.Helper()
	if os.Getenv("GODWIT_STORE_TEST_LOG") != "" {
		config.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, err := store.Open(tb.Context(), config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}
