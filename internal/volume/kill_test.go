package volume

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// serveEnv makes this program a volume server: of the folder that it names.
const serveEnv = "GODWIT_TEST_SERVE_VOLUMES"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveEnv); dir != "" {
		fmt.Fprintln(os.Stderr, serveUntilKilled(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func serveUntilKilled(dir string) error {
	store, err := Open(dir)
	if err != nil {
		return err
	}
	if _, err := store.Create("v", volumeSize, ""); orExists(err) != nil {
		return err
	}
	if err := bumpForever(store); err != nil {
		return err
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "nbd"))
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "listening")
	return NewServer(Config{Volumes: store, Log: slog.New(slog.DiscardHandler)}).ServeLocal(context.Background(), listener)
}

func orExists(err error) error {
	if fleet.CodeOf(err) == fleet.Exists {
		return nil
	}
	return err
}

// bumpForever makes and deletes a volume, and has one whose epoch is activated
// and then written to a file, without end: there is always something to be
// killed in.
func bumpForever(store *Store) error {
	if _, err := store.Create("leases", 4096, ""); orExists(err) != nil {
		return err
	}
	v, err := store.find("leases")
	if err != nil {
		return err
	}
	told, err := os.OpenFile(filepath.Join(store.dir, "told"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	go func() {
		for epoch := v.lease.Epoch + 1; ; epoch++ {
			_, err := store.Grant("leases", standbyOf(epoch, "h1"))
			if err == nil {
				err = store.Activate([]fleet.VolumeName{"leases"}, epoch, "h1", key(epoch, "h1"))
			}
			if err == nil {
				_, err = told.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(epoch)), 0)
			}
			if err == nil {
				_, err = store.Create("brief", 4096, "")
			}
			if err == nil {
				err = store.Delete("brief")
			}
			if err != nil {
				panic(err)
			}
		}
	}()
	return nil
}

// startServer runs a server in a process of its own and connects to it.
func startServer(t *testing.T, dir string) (*exec.Cmd, *testClient) {
	t.Helper()
	socket := filepath.Join(dir, "nbd")
	_ = os.Remove(socket)
	output := &synced{}
	server := exec.Command(os.Args[0])
	server.Env, server.Stderr = append(os.Environ(), serveEnv+"="+dir), output
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	output.waitFor(t, "listening")
	return server, dial(t, socket).enter("v", true)
}

// A server is killed again and again, in the middle of whatever it does. What
// was flushed is there afterwards; no epoch that was answered is forgotten; what
// was half made is gone; and no lock is left.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	var flushed byte // the last round whose flush was answered
	for round := byte(1); round <= 4; round++ {
		server, c := startServer(t, dir)
		c.wantBytes(0, flushed, 1<<20)
		if errno := c.write(0, round, 1<<20, 0); errno != 0 {
			t.Fatal(errno)
		}
		if got := c.do(request{command: cmdFlush}, nil).errno; got != 0 {
			t.Fatal(got)
		}
		flushed = round
		for range 32 { // in flight when it is killed
			c.send(append(requestBytes(request{command: cmdWrite, offset: 2 << 20, length: 64 << 10}), make([]byte, 64<<10)...))
		}
		_ = server.Process.Signal(unix.SIGKILL)
		_ = server.Wait()
		wantAfterKill(t, dir)
	}
}

func wantAfterKill(t *testing.T, dir string) {
	t.Helper()
	store, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	told, err := os.ReadFile(filepath.Join(dir, "told"))
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range store.List() {
		if info.Problem != "" {
			t.Errorf("%s: %s", info.Name, info.Problem)
		}
		if info.Name == "leases" && (len(told) != 8 || uint64(info.Lease.Epoch) < binary.BigEndian.Uint64(told)) {
			t.Errorf("epoch %d after %x was told", info.Lease.Epoch, told)
		}
	}
	if info, err := store.Create("brief", 4096, ""); err == nil {
		_ = store.Delete(info.Name)
	} else if orExists(err) != nil {
		t.Error(err)
	} else if err := store.Delete("brief"); err != nil {
		t.Error(err)
	}
}
