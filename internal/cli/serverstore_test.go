package cli_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/cli"
)

// serveAt runs godwit server on a data folder until stop, and waits until it
// answers.
func serveAt(t *testing.T, data, socket string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	app := testApp()
	go func() {
		ended <- cli.Main(ctx, app, []string{"server", "--data", data, "--socket", socket, "--listen", "127.0.0.1:0"})
	}()
	stop = func() {
		cancel()
		if code := <-ended; code != 0 {
			t.Errorf("the server ended with %d", code)
		}
		ended <- 0 // for the next stop
	}
	t.Cleanup(stop)
	late := time.After(30 * time.Second)
	for {
		if code, _ := run(t, "server", "status", "--server", "unix://"+socket); code == 0 {
			return stop
		}
		select {
		case <-time.After(20 * time.Millisecond): // nothing tells when it answers
		case <-late:
			t.Fatal("the server does not answer")
		}
	}
}

func testApp() *cli.App {
	return &cli.App{In: strings.NewReader(""), Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, Getenv: func(string) string { return "" }, Now: time.Now}
}

// run gives the exit code of a command and all that it says.
func run(t *testing.T, args ...string) (code int, said string) {
	t.Helper()
	app, out := testApp(), &bytes.Buffer{}
	app.Out, app.Err = out, out
	code = cli.Main(t.Context(), app, args)
	return code, out.String()
}

func expect(t *testing.T, code int, says string, args ...string) {
	t.Helper()
	if got, said := run(t, args...); got != code || !strings.Contains(said, says) {
		t.Fatalf("%v: %d, %s\nwant %d, %s", args, got, said, code, says)
	}
}

// The steps of docs/operations.md, one after the other.
func TestBackupAndRestore(t *testing.T) {
	dir, err := os.MkdirTemp("", "gw") // short: the socket's path is limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	in := func(name string) string { return filepath.Join(dir, name) }
	server := "--server=unix://" + in("s")
	stop := serveAt(t, in("data"), in("s"))
	expect(t, 0, "", "network", "create", "blue", "--subnet", "10.20.0.0/24", server)
	expect(t, 0, in("backup"), "server", "backup", in("backup"), server)
	expect(t, 4, "was not restored", "server", "accept-restore", server)
	if info, err := os.Stat(in("backup")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup: %v, %v", info, err)
	}
	expect(t, 4, "another process is using this folder", "server", "restore", in("backup"), "--data", in("data"))
	stop()
	expect(t, 4, "move it away", "server", "restore", in("backup"), "--data", in("data"))
	if err := os.Rename(in("data/etcd"), in("data/etcd.old")); err != nil {
		t.Fatal(err)
	}
	expect(t, 0, "accept-restore", "server", "restore", in("backup"), "--data", in("data"))
	serveAt(t, in("data"), in("s"))
	expect(t, 0, "The store was restored", "server", "status", server)
	expect(t, 0, "blue", "network", "list", server)
	expect(t, 4, "godwit server accept-restore", "network", "delete", "blue", server)
	expect(t, 0, "accepted, with 0 changes", "server", "accept-restore", server)
	expect(t, 0, "", "network", "delete", "blue", server)
}
