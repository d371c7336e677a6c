package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

// What was committed is there after SIGKILL, and the dead process's leadership
// is not.
func TestEmbeddedSurvivesKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 {
		holder := launch(t, "holder", dir, "")
		_, err := store.Open(t.Context(), embeddedConfig(dir))
		wantCode(t, err, fleet.Conflict)
		if !strings.Contains(err.Error(), "another process") || fleet.HintOf(err) == "" {
			t.Errorf("error %v, hint %q", err, fleet.HintOf(err))
		}
		holder.kill()

		s, err := store.Open(t.Context(), embeddedConfig(dir))
		if err != nil {
			t.Fatal(err)
		}
		record, err := s.Get(t.Context(), "written")
		if err != nil || holder.hello != fmt.Sprint("version ", record.Version) {
			t.Errorf("%+v, %v, the holder said %q", record, err, holder.hello)
		}
		began := time.Now()
		campaign(t, s, "next").Resign()
		if took := time.Since(began); took > leaderTTL/2 {
			t.Errorf("waited %v for a dead leader", took)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// The outcome of a commit whose answer is lost is unknown, and the commits
// that were answered are all there after the server was killed.
func TestExternalSurvivesKill(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	config := c.config()
	config.RequestTimeout = 2 * time.Second
	s := open(t, config)
	answered := make(chan int64, 1)
	failed := make(chan error, 1)
	go func() {
		for i := 1; ; i++ {
			if _, err := s.Commit(context.Background(), nil, store.Put("counter", fmt.Append(nil, i))); err != nil {
				answered <- int64(i - 1)
				failed <- err
				return
			}
			if i == 50 {
				go c.process.kill()
			}
		}
	}()
	last, err := <-answered, <-failed
	wantCode(t, err, fleet.Unavailable)
	if !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("the outcome is not said to be unknown: %v", err)
	}
	c.process.kill() // returns when it is dead
	c.start(t)
	record, err := s.Get(t.Context(), "counter")
	if err != nil {
		t.Fatal(err)
	}
	var got int64
	fmt.Sscan(string(record.Value), &got)
	if got != last && got != last+1 {
		t.Errorf("the store has %d, answered was %d", got, last)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	var version int64
	for i := range 3 {
		s, err := store.Open(t.Context(), embeddedConfig(dir))
		if err != nil {
			t.Fatal(err)
		}
		version = commit(t, s, store.If(store.At("a", version)), store.Put("a", fmt.Append(nil, i)))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenFailures(t *testing.T) {
	silent, err := net.Listen("tcp4", "127.0.0.1:0") // accepts, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	damaged := t.TempDir()
	if err := os.MkdirAll(filepath.Join(damaged, "etcd", "member", "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(damaged, "etcd", "member", "wal", "0000000000000000-0000000000000000.wal"), []byte("no log"), 0o600); err != nil {
		t.Fatal(err)
	}
	one, other := startCluster(t), startCluster(t)
	for _, test := range []struct {
		name   string
		config store.Config
		code   fleet.Code
		cause  string
	}{
		{"nothing", store.Config{}, fleet.Invalid, "neither"},
		{"both", store.Config{Dir: "x", Endpoints: []string{"http://127.0.0.1:1"}}, fleet.Invalid, "both"},
		{"a file", store.Config{Dir: file}, fleet.Failed, "cannot make the folder"},
		{"damaged", store.Config{Dir: damaged}, fleet.Failed, "did not start"},
		{"nobody listens", store.Config{Endpoints: []string{"http://" + closed.Addr().String()}}, fleet.Unavailable, "connection refused"},
		{"nobody answers", store.Config{Endpoints: []string{"http://" + silent.Addr().String()}}, fleet.Unavailable, "no endpoint"},
		{"two clusters", store.Config{Endpoints: []string{"http://" + one.address, "http://" + other.address}}, fleet.Invalid, "different clusters"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.config.RequestTimeout = 500 * time.Millisecond
			_, err := store.Open(t.Context(), test.config)
			wantCode(t, err, test.code)
			if !strings.Contains(err.Error(), test.cause) {
				t.Errorf("error %v, want %q", err, test.cause)
			}
		})
	}
}

// mountSmall gives a folder on a disk of its own.
func mountSmall(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if errors.Is(err, syscall.EPERM) {
			t.Skip("mounting a small disk needs root")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestDiskTooSmall(t *testing.T) {
	_, err := store.Open(t.Context(), embeddedConfig(mountSmall(t, "100m")))
	wantCode(t, err, fleet.Exhausted)
	if fleet.HintOf(err) == "" {
		t.Error("no hint")
	}
}

// A disk that fills up under the store: nothing more is written, what there is
// can be read, and it goes on when there is room again.
func TestDiskFillsUp(t *testing.T) {
	dir := mountSmall(t, "400m")
	s := open(t, embeddedConfig(filepath.Join(dir, "store")))
	commit(t, s, nil, store.Put("a", []byte("1")))
	ballast := filepath.Join(dir, "ballast")
	free := func() int64 {
		var disk syscall.Statfs_t
		if err := syscall.Statfs(dir, &disk); err != nil {
			t.Fatal(err)
		}
		return int64(disk.Bavail) * disk.Bsize
	}
	leave := func(want int64) {
		t.Helper()
		if err := os.RemoveAll(ballast); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ballast, make([]byte, free()-want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// etcd takes its second log segment in the background, and tells nobody.
	for deadline := time.Now().Add(10 * time.Second); free() > 280<<20; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are free: there is no second log segment", free())
		}
	}
	leave(88 << 20) // what is under way may still end
	commit(t, s, nil, store.Put("end", nil).Ending(), store.Put("other", nil))
	_, err := s.Commit(t.Context(), nil, store.Put("a", []byte("2")))
	wantCode(t, err, fleet.Exhausted)
	leave(64 << 20)
	_, err = s.Commit(t.Context(), nil, store.Put("end", nil).Ending())
	wantCode(t, err, fleet.Exhausted)
	_, err = s.Commit(t.Context(), nil, store.Put("a", []byte("2")))
	wantCode(t, err, fleet.Exhausted)
	if errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("nothing was done: %v", err)
	}
	if record, err := s.Get(t.Context(), "a"); err != nil || string(record.Value) != "1" {
		t.Errorf("%+v, %v", record, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	commit(t, s, nil, store.Put("a", []byte("2")))
}
