package volume

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/fleet"
)

// serveHost serves a store to a host without TLS: who the peer is counts for
// the lease, not how it was found out.
func serveHost(t *testing.T, store *Store, host fleet.HostName) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nbd")
	server := NewServer(Config{Volumes: store, Log: slog.New(slog.DiscardHandler)})
	listen(t, "unix", socket, func(ctx context.Context, listener net.Listener) error {
		return server.serve(ctx, listener, handshake{server: server, secure: true, peer: Peer{Host: host}})
	})
	return socket
}

// hand gives a volume to a host at an epoch.
func hand(t *testing.T, store *Store, epoch fleet.Epoch, host fleet.HostName) {
	t.Helper()
	if _, err := store.Grant("v", standbyOf(epoch, host)); err != nil {
		t.Fatal(err)
	}
	if err := store.Activate([]fleet.VolumeName{"v"}, epoch, host, key(epoch, host)); err != nil {
		t.Fatal(err)
	}
}

func TestRightsOfConnections(t *testing.T) {
	store := openStore(t)
	local, socket1, socket2 := serveLocal(t, store), serveHost(t, store, "h1"), serveHost(t, store, "h2")
	operator := dial(t, local).enter("v", true)
	if errno := operator.write(0, 1, 512, 0); errno != 0 {
		t.Errorf("an operator, while nobody holds it: %v", errno)
	}
	hand(t, store, 1, "h1")
	operator.wantClosed()
	if last := dial(t, local).last(optGo, infoData("v")); last != repErrPolicy {
		t.Errorf("an operator, while h1 holds it: %#x", last)
	}
	if last := dial(t, socket1).last(optGo, infoData("v")); last != repErrPolicy {
		t.Errorf("a host without an epoch: %#x", last)
	}
	if last := dial(t, socket2).last(optGo, infoData("v@1")); last != repErrPolicy {
		t.Errorf("another host: %#x", last)
	}
	source := dial(t, socket1).enter("v@1", true)
	if errno := source.write(0, 2, 512, 0); errno != 0 {
		t.Error(errno)
	}
	if _, err := store.Grant("v", standbyOf(2, "h2")); err != nil {
		t.Fatal(err)
	}
	target := dial(t, socket2).enter("v@2", true)
	target.wantBytes(0, 2, 512)
	for _, c := range []command{cmdWrite, cmdTrim, cmdWriteZeroes} {
		if got := target.do(request{command: c, length: 512}, make([]byte, 512*int(1-min(c-cmdWrite, 1)))).errno; got != unix.EPERM {
			t.Errorf("command %d of who stands by: %v", c, got)
		}
	}
	if got := target.do(request{command: cmdFlush}, nil).errno; got != 0 {
		t.Errorf("a flush of nothing: %v", got)
	}
	if err := store.Activate([]fleet.VolumeName{"v"}, 2, "h2", key(2, "h2")); err != nil {
		t.Fatal(err)
	}
	source.wantClosed()
	if errno := target.write(0, 3, 512, 0); errno != 0 {
		t.Errorf("on the connection from before the activation: %v", errno)
	}
	if last := dial(t, socket1).last(optGo, infoData("v@1")); last != repErrPolicy {
		t.Errorf("the older epoch: %#x", last)
	}
	if _, err := store.Release("v", 2, ""); err != nil {
		t.Fatal(err)
	}
	target.wantClosed()
	dial(t, local).enter("v", true).wantBytes(0, 3, 512)
}

// Each of a list of exports is one that the peer can have.
func TestListNamesWhatCanBeHad(t *testing.T) {
	store := openStore(t)
	local, socket := serveLocal(t, store), serveHost(t, store, "h1")
	listed := func(socket string) (names []string) {
		for _, reply := range dial(t, socket).option(optList, nil) {
			if reply.kind == repServer {
				names = append(names, string(reply.data[4:]))
			}
		}
		return names
	}
	for _, step := range []struct {
		do   func()
		want string
	}{
		{func() {}, "[v] []"},
		{func() { hand(t, store, 1, "h1") }, "[] [v@1]"},
		{func() { _, _ = store.Grant("v", standbyOf(2, "h1")) }, "[] [v@1 v@2]"},
		{func() { _, _ = store.Release("v", 1, "") }, "[v] [v@2]"},
	} {
		step.do()
		if got := fmt.Sprint(listed(local), listed(socket)); got != step.want {
			t.Errorf("%s, want %s", got, step.want)
		}
	}
}

// Epochs follow each other while the holders of all of them go on writing as
// fast as they can, 32 writes in flight each. Every record tells its epoch: when
// the activation of one has returned, no record of an older one is written any
// more.
func TestOlderEpochsNeverWrite(t *testing.T) {
	store := openStore(t)
	socket := serveHost(t, store, "h1")
	v, err := store.find("v")
	if err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	defer writers.Wait()
	for epoch := fleet.Epoch(1); epoch <= 5; epoch++ {
		hand(t, store, epoch, "h1")
		// From here on all that is written has this epoch or a later one.
		if err := v.data.writeAt(make([]byte, floodSize), 0); err != nil {
			t.Fatal(err)
		}
		flood := startFlood(dial(t, socket).enter(volumeAt("v", epoch), true), epoch)
		writers.Go(flood.run)
		<-flood.flowing
		wantEpochs(t, v, epoch)
	}
	if _, err := store.Release("v", 5, ""); err != nil {
		t.Fatal(err)
	}
}

// wantEpochs looks at every record there is.
func wantEpochs(t *testing.T, v *volume, epoch fleet.Epoch) {
	t.Helper()
	content := make([]byte, floodSize)
	if err := v.data.readAt(content, 0); err != nil {
		t.Fatal(err)
	}
	found := 0
	for at := 0; at < len(content); at += recordSize {
		switch wrote := fleet.Epoch(binary.BigEndian.Uint64(content[at:])); {
		case wrote != 0 && wrote != epoch:
			t.Fatalf("a record of epoch %d at %d, while %d is active", wrote, at, epoch)
		case wrote == epoch:
			found++
		}
	}
	if found == 0 {
		t.Errorf("no record of epoch %d", epoch)
	}
}

const (
	recordSize = 4096
	floodSize  = 1 << 20
	floodDepth = 32
	flowsAfter = 200 // answers
)

// flood writes records of an epoch without end, whatever it is answered, until
// its connection is closed.
type flood struct {
	client  *testClient
	epoch   fleet.Epoch
	flowing chan struct{} // closed once many were answered
	written atomic.Int64  // answers without an error
}

func startFlood(c *testClient, epoch fleet.Epoch) *flood {
	return &flood{client: c, epoch: epoch, flowing: make(chan struct{})}
}

func (f *flood) run() {
	slots, over := make(chan struct{}, floodDepth), make(chan struct{})
	defer close(over)
	go func() {
		record := make([]byte, recordSize)
		binary.BigEndian.PutUint64(record, uint64(f.epoch))
		for i := uint64(0); ; i++ {
			select {
			case slots <- struct{}{}:
			case <-over:
				return
			}
			r := request{command: cmdWrite, offset: i * 7 % (floodSize / recordSize) * recordSize, length: recordSize}
			if _, err := f.client.conn.Write(append(requestBytes(r), record...)); err != nil {
				return
			}
		}
	}()
	for n := 0; ; n++ {
		answer, err := f.client.answer(0)
		if err != nil {
			return
		}
		if answer.errno == 0 {
			f.written.Add(1)
		}
		if n == flowsAfter {
			close(f.flowing)
		}
		<-slots
	}
}

// A QEMU program is stopped with writes in flight and goes on when the next
// epoch is active: its writes are refused, and the bytes are the next one's.
func TestStoppedClient(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("needs qemu-io")
	}
	store := openStore(t)
	hand(t, store, 1, "h1")
	socket1, socket2 := serveHost(t, store, "h1"), serveHost(t, store, "h2")
	client := exec.Command("stdbuf", "-oL", "qemu-io", "-f", "raw", "-n", "nbd+unix:///v%401?socket="+socket1)
	stdin, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output := &synced{}
	client.Stdout, client.Stderr = output, output
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Process.Kill(); _ = client.Wait() })
	_, _ = fmt.Fprintln(stdin, "write -P 0x11 0 64k")
	output.waitFor(t, "wrote 65536")
	if err := client.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for i := range 32 { // waits in its input, and then on its connection
		_, _ = fmt.Fprintf(stdin, "aio_write -P 0x22 %dk 64k\n", i*64)
	}
	_, _ = fmt.Fprintln(stdin, "aio_flush")
	_ = stdin.Close() // it looks for a further line only when there is input, or none will come
	hand(t, store, 2, "h2")
	next := dial(t, socket2).enter("v@2", true)
	if errno := next.write(0, 0x33, 2<<20, flagFUA); errno != 0 {
		t.Fatal(errno)
	}
	if err := client.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	_ = client.Wait() // with what exit code is its own affair
	output.waitFor(t, "failed")
	next.wantBytes(0, 0x33, 2<<20)
}

// A client sends half of a write, and the rest when its epoch is over.
func TestHalfAWrite(t *testing.T) {
	store := openStore(t)
	hand(t, store, 1, "h1")
	c := dial(t, serveHost(t, store, "h1")).enter("v@1", true)
	c.send(append(requestBytes(request{command: cmdWrite, length: 1 << 20}), make([]byte, 1<<19)...))
	hand(t, store, 2, "h2")
	next := dial(t, serveHost(t, store, "h2")).enter("v@2", true)
	next.write(0, 0x33, 1<<20, 0)
	_, _ = c.conn.Write(make([]byte, 1<<19)) // the connection is closed, or will be
	c.wantClosed()
	next.wantBytes(0, 0x33, 1<<20)
}

// A request that was read already when its connection is cut is refused all the
// same: nothing rests on how soon a connection is gone.
func TestWriteReadBeforeTheCut(t *testing.T) {
	store := openStore(t)
	hand(t, store, 1, "h1")
	v, err := store.find("v")
	if err != nil {
		t.Fatal(err)
	}
	cut := 0
	old, err := v.attach(Peer{Host: "h1"}, 1, func() { cut++ })
	if err != nil {
		t.Fatal(err)
	}
	defer old.detach()
	buffer := make([]byte, replyRoom+512)
	buffer[replyRoom] = 0x11
	requests := []request{{command: cmdWrite, length: 512}, {command: cmdTrim, length: 512}, {command: cmdWriteZeroes, length: 512}, {command: cmdFlush}}
	for _, r := range requests {
		if err := old.perform(r, buffer); err != nil {
			t.Errorf("command %d while its epoch is active: %v", r.command, err)
		}
	}
	hand(t, store, 2, "h2")
	if err := v.data.writeAt([]byte{0x33}, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		if err := old.perform(r, buffer); errnoOf(err) != unix.EPERM || err == nil {
			t.Errorf("command %d of an older epoch: %v", r.command, err)
		}
	}
	got := make([]byte, 1)
	if err := v.data.readAt(got, 0); err != nil || got[0] != 0x33 || cut != 1 {
		t.Errorf("%#x, %v; cut %d times", got, err, cut)
	}
}

// A change of the lease waits for a write that runs.
func TestChangeWaitsForWrites(t *testing.T) {
	store := openStore(t)
	hand(t, store, 1, "h1")
	v, err := store.find("v")
	if err != nil {
		t.Fatal(err)
	}
	old, err := v.attach(Peer{Host: "h1"}, 1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer old.detach()
	var written atomic.Bool
	if _, err := store.Grant("v", standbyOf(2, "h2")); err != nil {
		t.Fatal(err)
	}
	changed := make(chan bool)
	err = old.write(func() error {
		go func() {
			err := store.Activate([]fleet.VolumeName{"v"}, 2, "h2", key(2, "h2"))
			changed <- err == nil && written.Load()
		}()
		if v.gate.TryLock() {
			t.Error("a change could be made while a write runs")
			v.gate.Unlock()
		}
		written.Store(true)
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if !<-changed {
		t.Error("the lease has not changed, or before the write was over")
	}
}
