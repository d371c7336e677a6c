package cli_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"godwit.dev/godwit/internal/cli"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/volumeserver"
)

// TestVolumeScripts runs the program against a real volume server.
func TestVolumeScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/volume",
		Setup:               serveVolumes,
		UpdateScripts:       *rewrite,
		RequireExplicitExec: true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

func serveVolumes(env *testscript.Env) error {
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		return err
	}
	key, request, err := pki.NewKeyAndRequest("v1")
	if err != nil {
		return err
	}
	cert, err := authority.Sign(request, pki.Identity{Kind: pki.Volume, Name: "v1"}, pki.Names{}, 0, time.Now())
	if err != nil {
		return err
	}
	dir := filepath.Join(env.WorkDir, "certificate")
	if err := (pki.Credentials{Certificate: cert, Key: key, Authority: authority.CertificatePEM()}).Save(dir); err != nil {
		return err
	}
	keeper, err := pki.OpenKeeper(dir, nil, nil)
	if err != nil {
		return err
	}
	// A socket's path must be short, so it cannot be in a test's folder.
	run, err := os.MkdirTemp("", "cli")
	if err != nil {
		return err
	}
	env.Defer(func() { _ = os.RemoveAll(run) })
	s, err := volumeserver.New(context.Background(), volumeserver.Config{
		Dir: filepath.Join(env.WorkDir, "volumes"), Keeper: keeper, Run: run,
		Listen: "127.0.0.1:0", Control: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	env.Defer(func() { cancel(); <-done })
	env.Setenv("GODWIT_VOLUME_SERVER", "unix://"+run+"/volume.sock")
	env.Setenv("GORACE", noRaceSleep)
	return nil
}

// said is what a command that goes on has printed so far.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, err := s.text.Write(p)
	select {
	case s.more <- struct{}{}:
	default:
	}
	return n, err
}

// find waits for what the pattern's group matches.
func (s *said) find(t *testing.T, pattern string) string {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		s.mu.Lock()
		text := s.text.String()
		s.mu.Unlock()
		if found := regexp.MustCompile(pattern).FindStringSubmatch(text); found != nil {
			return found[1]
		}
		select {
		case <-s.more:
		case <-limit:
			t.Fatalf("nothing of %s in:\n%s", pattern, text)
		}
	}
}

// during runs a command until the end of the test.
func during(t *testing.T, args ...string) *said {
	t.Helper()
	output := &said{more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		app := testApp()
		app.Err = output
		cli.Main(ctx, app, args)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return output
}

// succeed runs a command to its end, which must be a good one.
func succeed(t *testing.T, args ...string) string {
	t.Helper()
	var out, errors bytes.Buffer
	app := testApp()
	app.Out, app.Err = &out, &errors
	if code := cli.Main(t.Context(), app, args); code != 0 {
		t.Fatalf("%s: exit code %d: %s", strings.Join(args, " "), code, errors.String())
	}
	return strings.TrimSpace(out.String())
}

// A volume server joins a fleet by a token, and serves an administrator with
// the certificate that the fleet's server has made.
func TestVolumeServerJoinsAFleet(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli") // for sockets, whose paths must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data, socket := filepath.Join(dir, "server"), "unix://"+filepath.Join(dir, "s")
	server := during(t, "server", "--data="+data, "--socket="+filepath.Join(dir, "s"), "--listen=127.0.0.1:0")
	address := "https://" + server.find(t, `msg=serving listen=(\S+)`)
	token := succeed(t, "--server="+socket, "volume", "token", "v1")
	serve := []string{"--server=" + address, "volume", "serve", "--name=v1", "--dir=" + filepath.Join(dir, "volumes"),
		"--run=" + filepath.Join(dir, "run"), "--listen=127.0.0.1:0", "--control=127.0.0.1:0", "--token=" + token}
	nbd := during(t, serve...).find(t, `msg="serving volumes" .*nbd=(\S+)`)
	server.find(t, `msg="volume server" name=v1 nbd=(\S+)`)
	if list := succeed(t, "--server="+socket, "volume", "server", "list"); !strings.Contains(list, nbd) {
		t.Errorf("the fleet's server knows:\n%s\nwithout %s", list, nbd)
	}
	succeed(t, "volume", "create", "web1", "--size=1MiB", "--volume-server=unix://"+filepath.Join(dir, "run", "volume.sock"))

	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
	admin, err := pki.Load(filepath.Join(data, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	if err := admin.WriteQEMUCreds(filepath.Join(dir, "creds")); err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(nbd, ":")
	output, err := exec.CommandContext(t.Context(), "qemu-img", "info", "--object", "tls-creds-x509,id=tls,endpoint=client,dir="+filepath.Join(dir, "creds"),
		"--image-opts", "driver=nbd,host="+host+",port="+port+",export=web1,tls-creds=tls,tls-hostname="+pki.VolumeServerName("v1")).CombinedOutput()
	if err != nil || !strings.Contains(string(output), "1 MiB") {
		t.Errorf("%v\n%s", err, output)
	}
}
