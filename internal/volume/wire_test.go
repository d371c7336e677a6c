package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// waiting gives both ends of a connection, of which the first has left the
// poller.
func waiting(t *testing.T) (*wire, net.Conn) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(conn)
	t.Cleanup(func() { _ = w.Close() })
	if err := w.wait(); err != nil {
		t.Fatal(err)
	}
	return w, client
}

// A connection that is closed ends for those who wait in it, in both directions.
func TestCloseWakesWhoWaits(t *testing.T) {
	w, client := waiting(t)
	ended := make(chan error)
	begun := make(chan struct{}, 2)
	go func() { begun <- struct{}{}; _, err := w.Read(make([]byte, 1)); ended <- err }()
	go func() { begun <- struct{}{}; _, err := w.Write(make([]byte, 8<<20)); ended <- err }() // nobody reads
	<-begun
	<-begun
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil { // it is at it
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("no error")
		}
	}
	if err := w.wait(); err != nil {
		t.Error("wait of what is closed:", err)
	}
}

// Many parts arrive as they are, however little the other end takes at a time.
func TestParts(t *testing.T) {
	w, client := waiting(t)
	var parts [][]byte
	for i := range 3 * partsMax {
		parts = append(parts, bytes.Repeat([]byte{byte(i)}, i%700))
	}
	want := bytes.Join(parts, nil)
	sent := make(chan error)
	go func() { sent <- w.writeFrom(parts) }()
	got := make([]byte, len(want))
	for at := 0; at < len(got); {
		n, err := client.Read(got[at:min(at+1777, len(got))])
		if err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if err := <-sent; err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v, or other bytes", err)
	}
}

func TestSendFile(t *testing.T) {
	w, client := waiting(t)
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("0123456789"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := w.sendFile(int(file.Fd()), 3, 4); err != nil {
		t.Error(err)
	}
	if err := w.sendFile(int(file.Fd()), 8, 4); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("beyond the end: %v", err)
	}
	got := make([]byte, 6)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "345689" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWriteDeadline(t *testing.T) {
	w, _ := waiting(t)
	if err := w.SetWriteDeadline(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 8<<20)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nobody reads: %v", err)
	}
}

// Who takes no answers is cut all the same.
func TestCutOfWhoTakesNothing(t *testing.T) {
	store := openStore(t)
	hand(t, store, 1, "h1")
	c := dial(t, serveHost(t, store, "h1")).enter("v@1", true)
	c.write(0, 1, volumeSize, 0)
	const asked = 64
	for range asked {
		c.send(requestBytes(request{command: cmdRead, length: 1 << 20}))
	}
	c.read(1) // an answer is on its way
	hand(t, store, 2, "h1")
	n, _ := io.Copy(io.Discard, c.conn)
	if n >= asked<<20 {
		t.Errorf("it was answered all, %d bytes", n)
	}
}

// Connections for which there is no thread are served by the poller.
func TestMoreConnectionsThanThreads(t *testing.T) {
	store := openStore(t)
	server := NewServer(Config{Volumes: store, Log: slog.New(slog.DiscardHandler)})
	server.waiting = make(chan struct{}, 1)
	socket := filepath.Join(t.TempDir(), "nbd")
	listen(t, "unix", socket, func(ctx context.Context, listener net.Listener) error { return server.ServeLocal(ctx, listener) })
	for i := range 3 {
		c := dial(t, socket).enter("v", true)
		c.write(0, byte(i), 1<<20, 0)
		c.wantBytes(0, byte(i), 1<<20)
	}
	if len(server.waiting) != 1 {
		t.Errorf("%d threads", len(server.waiting))
	}
}

// What is not in the kernel's cache as a whole is told from what is, and read
// all the same.
func TestCached(t *testing.T) {
	store := openStore(t)
	v, err := store.find("v")
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, serveLocal(t, store)).enter("v", true)
	c.write(0, 7, 1<<20, flagFUA)
	if !v.data.cached(0, 1<<20) || !v.data.cached(5000, 1) {
		t.Error("what was just written is not in the cache")
	}
	if err := unix.Fadvise(v.data.fd, 4096, 8192, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if v.data.readCached(make([]byte, 1), 4096) {
		t.Skip("this file system keeps what it is told to drop")
	}
	if v.data.cached(0, 1<<20) || v.data.cached(8000, 500) || !v.data.cached(0, 4096) || !v.data.cached(12288, 4096) {
		t.Error("it is not known what is in the cache")
	}
	c.wantBytes(0, 7, 1<<20)
	if !v.data.cached(0, 1<<20) {
		t.Error("what was just read is not in the cache")
	}
}

// lengths are those at which another way is taken, and those beside them.
var lengths = []int{1, 512, 4096, readBuffer - requestHeaderSize, readBuffer - 1, readBuffer, directMin, directMin + 1, readMax, readMax + 1, writeMax, writeMax + 1, 1 << 20}

// WRITEs of all lengths that come together, and READs of them, keep their bytes.
func TestMixedLengths(t *testing.T) {
	bothDialects(t, func(t *testing.T, c *testClient) { mixedLengths(t, c) })
}

func mixedLengths(t *testing.T, c *testClient) {
	t.Helper()
	var writes, reads []byte
	offset := uint64(0)
	asked := map[uint64]int{}
	for round := range 4 {
		for i := range lengths {
			length := lengths[(i*(2*round+1)+round)%len(lengths)]
			if offset+uint64(length) > volumeSize {
				continue
			}
			r := request{command: cmdWrite, cookie: uint64(len(asked)), offset: offset, length: uint32(length)}
			writes = append(append(writes, requestBytes(r)...), bytes.Repeat([]byte{byte(r.cookie + 1)}, length)...)
			r.command = cmdRead
			reads = append(reads, requestBytes(r)...)
			asked[r.cookie], offset = length, offset+uint64(length)
		}
	}
	go func() { _, _ = c.conn.Write(writes) }()
	for range asked {
		if a, err := c.answer(0); err != nil || a.errno != 0 {
			t.Fatal(err, a.errno)
		}
	}
	go func() { _, _ = c.conn.Write(reads) }()
	for range asked {
		a, err := c.answerOf(func(cookie uint64) uint32 { return uint32(asked[cookie]) })
		if err != nil || !bytes.Equal(a.data, bytes.Repeat([]byte{byte(a.cookie + 1)}, asked[a.cookie])) {
			t.Fatalf("request %d of %d bytes: %v, error %d, or other bytes", a.cookie, asked[a.cookie], err, a.errno)
		}
	}
}
