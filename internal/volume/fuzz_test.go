package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

func FuzzOptionHeader(f *testing.F) {
	f.Add(optionBytes(optGo, nil))
	f.Add([]byte("IHAVEOPT"))
	f.Fuzz(func(t *testing.T, b []byte) {
		header, err := decodeOptionHeader(b)
		if err == nil && !bytes.Equal(b[:12], optionBytes(header.kind, nil)[:12]) {
			t.Errorf("%x was taken for %+v", b, header)
		}
	})
}

// What is understood of a query says it all: encoded again it is the same.
func FuzzInfoQuery(f *testing.F) {
	f.Add(infoData("v@7", infoName, infoBlockSize))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		query, err := decodeInfoQuery(b)
		if err == nil && !bytes.Equal(b, infoData(query.name, query.wants...)) {
			t.Errorf("%x was taken for %+v", b, query)
		}
	})
}

func FuzzMetaQuery(f *testing.F) {
	f.Add(metaData("v", contextAllocation, "x-other:"))
	f.Add(append(nbdString("v"), 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		query, err := decodeMetaQuery(b)
		if err == nil && !bytes.Equal(b, metaData(query.name, query.queries...)) {
			t.Errorf("%x was taken for %+v", b, query)
		}
	})
}

func FuzzExportName(f *testing.F) {
	for _, name := range []string{"v", "v@1", "v@", "@1", "v@18446744073709551616", "v@+1", "a@b@1"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		volume, epoch, err := parseExport(name)
		if err != nil {
			return
		}
		again := string(volume)
		if epoch != 0 {
			again = volumeAt(volume, epoch)
		}
		if again != name {
			t.Errorf("%q was taken for %q", name, again)
		}
	})
}

// A request that passes the check stays within the volume and the limits.
func FuzzRequest(f *testing.F) {
	for c := cmdRead; c <= cmdBlockStatus+1; c++ {
		f.Add(requestBytes(request{command: c, length: 1}), true)
		f.Add(requestBytes(request{command: c, flags: 0xffff, offset: 1<<64 - 1, length: 1<<32 - 1}), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, agreed bool) {
		r, err := decodeRequest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(b, requestBytes(r)) {
			t.Errorf("%x was taken for %+v", b, r)
		}
		d := dialect{structured: agreed, allocation: agreed}
		if d.check(r, volumeSize) != 0 || r.command == cmdFlush {
			return
		}
		if end := r.offset + uint64(r.length); end < r.offset || end > volumeSize {
			t.Errorf("%+v leaves the volume", r)
		}
		if r.flags&(flagDF|flagReqOne) != 0 && !agreed || !slices.Contains(allCommands, r.command) {
			t.Errorf("%+v is more than was agreed on", r)
		}
	})
}

var allCommands = []command{cmdRead, cmdWrite, cmdTrim, cmdCache, cmdWriteZeroes, cmdBlockStatus}

func FuzzLeaseSlot(f *testing.F) {
	slot, err := encodeSlot(7, Lease{Epoch: 3, Holder: "h1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slot)
	f.Add(slot[:slotHeader])
	f.Fuzz(func(t *testing.T, b []byte) {
		sequence, lease, ok := decodeSlot(b)
		if !ok {
			return
		}
		again, err := encodeSlot(sequence, lease)
		if err != nil {
			return // more than a slot has; another program has written it
		}
		if n, l, ok := decodeSlot(again); !ok || n != sequence || !l.equal(lease) {
			t.Errorf("%+v became %+v", lease, l)
		}
	})
}

// FuzzConnection says anything to a whole server: it must not break, and must
// let go of the volume when the client has gone.
func FuzzConnection(f *testing.F) {
	chosen := slices.Concat(optionBytes(optStructured, nil), optionBytes(optSetMetaContext, metaData("v", contextAllocation)),
		optionBytes(optGo, infoData("v")))
	f.Add(optionBytes(optList, nil))
	f.Add(optionBytes(optExportName, []byte("v")))
	f.Add(optionBytes(optStartTLS, nil))
	f.Add(chosen)
	for c := cmdRead; c <= cmdBlockStatus; c++ {
		f.Add(append(slices.Clone(chosen), requestBytes(request{command: c, length: 4096})...))
		f.Add(append(slices.Clone(chosen), requestBytes(request{command: c, offset: volumeSize - 1, length: 2})...))
	}
	store, err := Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = store.Close() })
	if _, err := store.Create("v", volumeSize, ""); err != nil {
		f.Fatal(err)
	}
	server := NewServer(Config{Volumes: store, Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, said []byte) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		client, ours := connOf(t, pair[0]), connOf(t, pair[1])
		done := make(chan struct{})
		go func() {
			server.handle(context.Background(), ours, handshake{server: server, secure: true, peer: Peer{Operator: true}})
			close(done)
		}()
		go func() {
			_, _ = client.Write(append(binary.BigEndian.AppendUint32(nil, flagFixedNewstyle), said...))
			_ = client.(*net.UnixConn).CloseWrite()
		}()
		_, _ = io.Copy(io.Discard, client)
		_ = client.Close()
		<-done
		if err := store.volumes["v"].shut(false); fleet.CodeOf(err) == fleet.Conflict {
			t.Errorf("the volume is still in use: %v", err)
		}
		store.volumes["v"].closed = false
	})
}

func connOf(t *testing.T, fd int) net.Conn {
	t.Helper()
	file := os.NewFile(uintptr(fd), "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
