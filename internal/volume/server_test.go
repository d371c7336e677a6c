package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

const volumeSize = 8 << 20

// openStore opens a store with one volume "v", in a new folder.
func openStore(t *testing.T) *Store {
	t.Helper()
	store, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := store.Create("v", volumeSize, ""); err != nil {
		t.Fatal(err)
	}
	return store
}

// serveLocal serves a store to operators and gives the socket's path.
func serveLocal(t *testing.T, store *Store) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nbd")
	server := NewServer(Config{Volumes: store, Log: slog.New(slog.DiscardHandler)})
	listen(t, "unix", socket, server.ServeLocal)
	return socket
}

// listen runs a server until the end of the test, and gives its address.
func listen(t *testing.T, network, address string, serve func(context.Context, net.Listener) error) net.Addr {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr()
}

func TestNegotiation(t *testing.T) {
	store := openStore(t)
	socket := serveLocal(t, store)
	long := strings.Repeat("x", maxString+1)
	for name, test := range map[string]struct {
		kind optionKind
		data []byte
		want replyKind
	}{
		"info":                    {optInfo, infoData("v", infoName, infoBlockSize, 77), repAck},
		"unknown export":          {optInfo, infoData("w"), repErrUnknown},
		"default export":          {optInfo, infoData(""), repErrUnknown},
		"epoch without a lease":   {optInfo, infoData("v@1"), repErrPolicy},
		"epoch that is no number": {optInfo, infoData("v@x"), repErrUnknown},
		"epoch 0":                 {optInfo, infoData("v@0"), repErrUnknown},
		"epoch in another form":   {optInfo, infoData("v@01"), repErrUnknown},
		"go to an unknown export": {optGo, infoData("w"), repErrUnknown},
		"long name":               {optInfo, infoData(long), repErrInvalid},
		"name beyond the data":    {optGo, []byte{0, 0, 0, 9, 'v'}, repErrInvalid},
		"too many wants":          {optGo, append(nbdString("v"), 0, 2, 0, 3), repErrInvalid},
		"bytes left over":         {optGo, append(infoData("v"), 0), repErrInvalid},
		"list":                    {optList, nil, repAck},
		"list with data":          {optList, []byte{0}, repErrInvalid},
		"structured with data":    {optStructured, []byte{0}, repErrInvalid},
		"contexts too early":      {optSetMetaContext, metaData("v", contextAllocation), repErrInvalid},
		"TLS where there is none": {optStartTLS, nil, repErrInvalid},
		"unknown option":          {12345, []byte("x"), repErrUnsupported},
		"abort":                   {optAbort, []byte("ignored"), repAck},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, socket)
			if last := c.last(test.kind, test.data); last != test.want {
				t.Errorf("answered %#x, want %#x", last, test.want)
			}
			if test.kind == optAbort {
				c.wantClosed()
			} else if last := c.last(optInfo, infoData("v")); last != repAck {
				t.Errorf("the negotiation did not go on: %#x", last)
			}
		})
	}
}

// What leaves no common ground ends the connection.
func TestNegotiationEnds(t *testing.T) {
	socket := serveLocal(t, openStore(t))
	for name, bytes := range map[string][]byte{
		"no option":      []byte("GET / HTTP/1.1\r\n\r\n"),
		"much data":      optionBytes(optInfo, make([]byte, maxOptionData+1))[:16],
		"unknown export": optionBytes(optExportName, []byte("w")),
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, socket)
			c.send(bytes)
			c.wantClosed()
		})
	}
	t.Run("unknown flags", func(t *testing.T) {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c := newTestClient(t, conn)
		c.read(18)
		c.send([]byte{0, 0, 0, 7})
		c.wantClosed()
	})
}

func TestMetaContexts(t *testing.T) {
	c := dial(t, serveLocal(t, openStore(t)))
	c.last(optStructured, nil)
	for _, test := range []struct {
		kind  optionKind
		data  []byte
		found int
	}{
		{optListMetaContext, metaData("v"), 1},
		{optListMetaContext, metaData("v", "base:"), 1},
		{optListMetaContext, metaData("v", "x-other:y", "base:allocation"), 1},
		{optListMetaContext, metaData("v", "x-other:y"), 0},
		{optSetMetaContext, metaData("v"), 0},
		{optSetMetaContext, metaData("v", "base:"), 0},
		{optSetMetaContext, metaData("v", "base:allocation"), 1},
	} {
		if replies := c.option(test.kind, test.data); len(replies) != test.found+1 || replies[test.found].kind != repAck {
			t.Errorf("option %d %q: %v", test.kind, test.data, replies)
		}
	}
	if last := c.last(optSetMetaContext, metaData("w", "base:allocation")); last != repErrUnknown {
		t.Errorf("context of an unknown export: %#x", last)
	}
	// What was set last was refused, and so nothing is set.
	c.structured = true
	c.last(optGo, infoData("v"))
	if got := c.do(request{command: cmdBlockStatus, length: 1}, nil).errno; got != unix.EINVAL {
		t.Errorf("BLOCK_STATUS without a context: %v", got)
	}
}

// The oldest way to choose an export, with and without its zeroes.
func TestExportName(t *testing.T) {
	socket := serveLocal(t, openStore(t))
	for flags, length := range map[uint32]int{flagFixedNewstyle | flagNoZeroes: 10, flagFixedNewstyle: 134} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c := newTestClient(t, conn)
		c.read(18)
		c.send(binary.BigEndian.AppendUint32(nil, flags))
		c.send(optionBytes(optExportName, []byte("v")))
		if b := c.read(length); binary.BigEndian.Uint64(b) != volumeSize || !bytes.Equal(b[10:], make([]byte, length-10)) {
			t.Errorf("flags %d: %x", flags, b)
		}
		if errno := c.write(0, 1, 512, 0); errno != 0 {
			t.Error(errno)
		}
		_ = conn.Close()
	}
}

// bothDialects runs a test with simple and with structured replies.
func bothDialects(t *testing.T, test func(t *testing.T, c *testClient)) {
	socket := serveLocal(t, openStore(t))
	for name, structured := range map[string]bool{"simple": false, "structured": true} {
		t.Run(name, func(t *testing.T) { test(t, dial(t, socket).enter("v", structured)) })
	}
}

func TestRequests(t *testing.T) {
	bothDialects(t, func(t *testing.T, c *testClient) {
		if c.size != volumeSize {
			t.Errorf("size %d", c.size)
		}
		for name, flags := range map[string]uint16{"write": 0, "write through": flagFUA} {
			if errno := c.write(100, 7, 10_000, flags); errno != 0 {
				t.Fatal(name, errno)
			}
			c.wantBytes(100, 7, 10_000)
			c.wantBytes(0, 0, 100)
			if got := c.do(request{flags: flags, command: cmdWriteZeroes, offset: 200, length: 9_000}, nil).errno; got != 0 {
				t.Error(name, "zeroes:", got)
			}
			c.wantBytes(200, 0, 9_000)
			c.wantBytes(100, 7, 100)
		}
		for _, r := range []request{
			{command: cmdFlush}, {command: cmdFlush, flags: flagFUA}, {command: cmdCache, length: 4096},
			{command: cmdTrim, offset: 4096, length: 4096}, {command: cmdTrim, flags: flagFUA, length: volumeSize},
			{command: cmdWriteZeroes, flags: flagNoHole, length: volumeSize}, {command: cmdRead}, {command: cmdWrite},
			{command: cmdWriteZeroes}, {command: cmdTrim},
		} {
			if got := c.do(r, nil).errno; got != 0 {
				t.Errorf("%+v: %v", r, got)
			}
		}
		c.wantBytes(0, 0, volumeSize)
	})
}

// Requests that are wrong are answered, and the connection goes on.
func TestRefusedRequests(t *testing.T) {
	bothDialects(t, func(t *testing.T, c *testClient) {
		for _, test := range []struct {
			request
			want unix.Errno
		}{
			{request{command: cmdRead, offset: volumeSize, length: 1}, unix.EINVAL},
			{request{command: cmdRead, offset: 1<<64 - 1, length: 2}, unix.EINVAL},
			{request{command: cmdRead, length: maxPayload + 1}, unix.EINVAL},
			{request{command: cmdRead, flags: flagNoHole, length: 1}, unix.EINVAL},
			{request{command: cmdWrite, offset: volumeSize - 1, length: 2}, unix.ENOSPC},
			{request{command: cmdWrite, length: maxPayload + 1}, unix.ENOSPC},
			{request{command: cmdWrite, flags: flagDF, length: 4}, unix.EINVAL},
			{request{command: cmdWriteZeroes, offset: 1, length: volumeSize}, unix.ENOSPC},
			{request{command: cmdWriteZeroes, flags: flagReqOne, length: 1}, unix.EINVAL},
			{request{command: cmdTrim, offset: 1, length: volumeSize}, unix.EINVAL},
			{request{command: cmdCache, offset: 1, length: volumeSize}, unix.EINVAL},
			{request{command: cmdFlush, flags: flagFastZero}, unix.EINVAL},
			{request{command: cmdBlockStatus, offset: 1, length: volumeSize}, unix.EINVAL},
			{request{command: cmdBlockStatus}, unix.EINVAL},
			{request{command: 99, length: 5}, unix.EINVAL},
		} {
			var payload []byte
			if test.command == cmdWrite {
				payload = make([]byte, test.length)
			}
			if got := c.do(test.request, payload).errno; got != test.want {
				t.Errorf("%+v: %v, want %v", test.request, got, test.want)
			}
		}
		c.wantBytes(0, 0, 4096)
	})
}

func TestDontFragment(t *testing.T) {
	socket := serveLocal(t, openStore(t))
	plain, structured := dial(t, socket).enter("v", false), dial(t, socket).enter("v", true)
	if plain.flags&canDF != 0 || structured.flags&canDF == 0 {
		t.Errorf("flags %#x and %#x", plain.flags, structured.flags)
	}
	if got := plain.do(request{command: cmdRead, flags: flagDF, length: 1}, nil).errno; got != unix.EINVAL {
		t.Error(got)
	}
	if got := structured.do(request{command: cmdRead, flags: flagDF, length: 65536}, nil); len(got.data) != 65536 {
		t.Errorf("%v and %d bytes", got.errno, len(got.data))
	}
	if got := structured.do(request{command: cmdRead, flags: flagDF, length: maxPayload + 1}, nil).errno; got != unix.EOVERFLOW {
		t.Error(got)
	}
}

func TestBlockStatus(t *testing.T) {
	c := dial(t, serveLocal(t, openStore(t))).enter("v", true)
	c.write(1<<20, 5, 1<<20, 0)
	c.do(request{command: cmdFlush}, nil)
	want := []extent{{1 << 20, true}, {1 << 20, false}, {volumeSize - 2<<20, true}}
	got := c.do(request{command: cmdBlockStatus, length: volumeSize}, nil)
	if len(got.extents) != len(want) || got.extents[0] != want[0] || got.extents[1] != want[1] || got.extents[2] != want[2] {
		t.Errorf("%v, want %v", got.extents, want)
	}
	one := c.do(request{command: cmdBlockStatus, flags: flagReqOne, offset: 4096, length: volumeSize - 4096}, nil)
	if len(one.extents) != 1 || one.extents[0] != (extent{1<<20 - 4096, true}) {
		t.Errorf("one: %v", one.extents)
	}
	// What is trimmed takes no room any more.
	c.do(request{command: cmdTrim, length: volumeSize}, nil)
	got = c.do(request{command: cmdBlockStatus, length: volumeSize}, nil)
	if len(got.extents) != 1 || got.extents[0] != (extent{volumeSize, true}) {
		t.Errorf("after TRIM: %v", got.extents)
	}
}

// Where the file system can't give zeroes fast, FAST_ZERO says so and changes
// nothing, and without it they are written.
func TestZeroesWhereTheyAreSlow(t *testing.T) {
	store := openStore(t)
	c := dial(t, serveLocal(t, store)).enter("v", true)
	c.write(0, 9, 3<<20, 0)
	v, err := store.find("v")
	if err != nil {
		t.Fatal(err)
	}
	var status unix.Statfs_t
	if err := unix.Fstatfs(v.data.fd, &status); err != nil {
		t.Fatal(err)
	}
	got := c.do(request{command: cmdWriteZeroes, flags: flagFastZero | flagNoHole, length: 1 << 20}, nil).errno
	slow := status.Type == unix.TMPFS_MAGIC // has PUNCH_HOLE and no ZERO_RANGE
	switch {
	case slow && got != unix.ENOTSUP:
		t.Errorf("fast where that is not possible: %v", got)
	case slow:
		c.wantBytes(0, 9, 1<<20)
	case got != 0:
		t.Error(got)
	}
	if got := c.do(request{command: cmdWriteZeroes, flags: flagNoHole, length: 1<<20 + 5}, nil).errno; got != 0 {
		t.Error(got)
	}
	c.wantBytes(0, 0, 1<<20+5)
	c.wantBytes(1<<20+5, 9, 4096)
}

// A flush by one connection covers the writes of another, and what one has
// written all read.
func TestConnectionsShareOneCache(t *testing.T) {
	socket := serveLocal(t, openStore(t))
	one, two := dial(t, socket).enter("v", true), dial(t, socket).enter("v", false)
	if one.flags&canMultiConn == 0 {
		t.Error("not offered")
	}
	one.write(0, 3, 4096, 0)
	two.wantBytes(0, 3, 4096)
	if got := two.do(request{command: cmdFlush}, nil).errno; got != 0 {
		t.Error(got)
	}
}

// A flush that has failed is not followed by one that succeeds: the kernel has
// dropped what it could not write.
func TestFailedFlushStays(t *testing.T) {
	store, failure := openStore(t), error(unix.EIO)
	withSync(t, store, func() error {
		defer func() { failure = nil }()
		return failure
	})
	c := dial(t, serveLocal(t, store)).enter("v", true)
	if got := c.do(request{command: cmdFlush}, nil).errno; got != unix.EIO {
		t.Error(got)
	}
	if got := c.write(0, 1, 512, flagFUA); got != unix.EIO {
		t.Error(got)
	}
}

func TestTooManyConnections(t *testing.T) {
	store := openStore(t)
	socket := filepath.Join(t.TempDir(), "nbd")
	server := NewServer(Config{Volumes: store, MaxConnections: 2, Log: slog.New(slog.DiscardHandler)})
	listen(t, "unix", socket, server.ServeLocal)
	dial(t, socket).enter("v", true)
	dial(t, socket)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	newTestClient(t, conn).wantClosed()
}

func TestGrowWhileConnected(t *testing.T) {
	store := openStore(t)
	socket := serveLocal(t, store)
	c := dial(t, socket).enter("v", true)
	if _, err := store.Grow("v", 2*volumeSize); err != nil {
		t.Fatal(err)
	}
	if errno := c.write(2*volumeSize-512, 4, 512, 0); errno != 0 {
		t.Errorf("write to what was added: %v", errno)
	}
	if again := dial(t, socket).enter("v", true); again.size != 2*volumeSize {
		t.Errorf("a new connection sees %d bytes", again.size)
	}
	if _, err := store.Grow("v", volumeSize); fleet.CodeOf(err) != fleet.Invalid {
		t.Errorf("shrunk: %v", err)
	}
}
