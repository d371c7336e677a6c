package client_test

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Of several servers one answers, whichever of them runs, for calls and streams.
func TestSeveralServers(t *testing.T) {
	away := "unix://" + filepath.Join(t.TempDir(), "away")
	c, err := client.Dial(client.Config{Server: strings.Join([]string{away, serve(t), away}, ",")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if _, err := c.VM.List(t.Context(), &godwitv1.ListVMsRequest{}); err != nil {
			t.Fatal(err)
		}
		stream, err := c.VM.Watch(t.Context(), &godwitv1.WatchVMsRequest{Name: "ends"})
		if err != nil || !stream.Receive() {
			t.Fatalf("watch: %v, %v", err, stream.Err())
		}
		_ = stream.Close()
	}
}

// A server that cannot be reached holds a call up for a moment only.
func TestSeveralServersOneOfThemSilent(t *testing.T) {
	c, err := client.Dial(client.Config{Server: "https://" + silent(t) + "," + serve(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	if _, err := c.VM.List(t.Context(), &godwitv1.ListVMsRequest{}); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("answered after %v", took)
	}
}

// silent gives an address where the queue of connections is full, so that the
// kernel lets others wait.
func silent(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	bound, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*syscall.SockaddrInet4).Port))
	dialer := net.Dialer{Timeout: 100 * time.Millisecond}
	for range 8 {
		conn, err := dialer.Dial("tcp", address)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("its queue is endless")
	return ""
}

func TestNoneOfSeveralServers(t *testing.T) {
	away := "unix://" + filepath.Join(t.TempDir(), "away")
	c, err := client.Dial(client.Config{Server: away + "," + away})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.VM.List(t.Context(), &godwitv1.ListVMsRequest{})
	if fleet.CodeOf(err) != fleet.Unavailable {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.VM.List(ctx, &godwitv1.ListVMsRequest{}); err == nil {
		t.Error("a cancelled call was answered")
	}
	if _, err := client.Dial(client.Config{Server: away + ",ftp://x"}); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("got %v", err)
	}
}
