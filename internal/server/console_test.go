package server

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
	"godwit.dev/godwit/internal/wire"
)

// fakeConsole is the console of one VM at one epoch on one host.
type fakeConsole struct {
	epoch fleet.Epoch

	mu    sync.Mutex
	said  string
	more  chan struct{} // closed when it says more
	typed string
}

// serveConsole answers for a host's console, and tells where.
func (f *testFleet) serveConsole(host string, epoch fleet.Epoch) (*fakeConsole, string) {
	f.t.Helper()
	c := &fakeConsole{epoch: epoch, more: make(chan struct{})}
	path, handler := godwitv1connect.NewConsoleServiceHandler(c, connect.WithInterceptors(wire.ServerInterceptor()))
	return c, f.serveAgent(host, path, handler)
}

func (c *fakeConsole) say(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said += text
	close(c.more)
	c.more = make(chan struct{})
}

func (c *fakeConsole) after(offset uint64) (said string, more chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said[offset:], c.more
}

func (c *fakeConsole) Read(ctx context.Context, request *godwitv1.ReadConsoleRequest, stream *connect.ServerStream[godwitv1.ReadConsoleResponse]) error {
	if fleet.Epoch(request.GetEpoch()) != c.epoch {
		return &fleet.Error{Code: fleet.NotFound, Cause: fmt.Sprintf("not epoch %d", request.GetEpoch())}
	}
	offset := request.GetOffset()
	if request.Last != nil {
		said, _ := c.after(0)
		offset = uint64(len(said)) - min(uint64(len(said)), request.GetLast())
	}
	for {
		said, more := c.after(offset)
		offset += uint64(len(said))
		if err := stream.Send(&godwitv1.ReadConsoleResponse{Output: []byte(said), Offset: offset}); err != nil {
			return err
		}
		if !request.GetFollow() {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *fakeConsole) Write(_ context.Context, request *godwitv1.WriteConsoleRequest) (*godwitv1.WriteConsoleResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.typed += string(request.GetInput())
	return &godwitv1.WriteConsoleResponse{}, nil
}

// A console that is open goes from host to host with its VM, to its end.
func TestConsoleFollowsItsVM(t *testing.T) {
	t.Parallel()
	f, at := reachedFleet(t)
	h1 := f.join("h1", listens)
	f.join("h2", listens)
	first, address1 := f.serveConsole("h1", 1)
	second, address2 := f.serveConsole("h2", 2)
	at["10.9.0.1:7444"], at["10.9.0.2:7444"] = address1, address2
	f.running(h1, "web1")
	first.say("long ago; one")
	open := f.openConsole(&godwitv1.ConsoleRequest{Name: "web1", HistoryBytes: 3})
	open.await("h1: one")
	if _, err := f.vms.Type(t.Context(), &godwitv1.TypeRequest{Name: "web1", Input: []byte("x")}); err != nil || first.typed != "x" {
		t.Errorf("typed %q at h1: %v", first.typed, err)
	}
	second.say("two")
	first.say("; the last")
	f.own("web1", fleet.Owner{Host: "h2", Epoch: 2}, fleet.VMRunning)
	open.await("h1: one; the last\nh2: two")
	if want := "h1: one; the last\nh2: two"; open.said != want {
		t.Errorf("said %q, want %q", open.said, want)
	}
	if _, err := f.vms.Type(t.Context(), &godwitv1.TypeRequest{Name: "web1", Input: []byte("y")}); err != nil || second.typed != "y" || first.typed != "x" {
		t.Errorf("typed %q at h2, %q at h1: %v", second.typed, first.typed, err)
	}
	last := open.stream.Msg()
	again := f.openConsole(&godwitv1.ConsoleRequest{Name: "web1", Epoch: last.GetEpoch(), Offset: last.GetOffset() - 1})
	again.await("h2: o")
	older := f.openConsole(&godwitv1.ConsoleRequest{Name: "web1", Epoch: 1, Offset: 9})
	older.await("h2: two")
	second.say("; bye")
	f.own("web1", fleet.Owner{Epoch: 3}, fleet.VMStopped)
	open.await("; bye\nvm web1 is stopped")
	if open.stream.Receive() || open.stream.Err() != nil {
		t.Errorf("after its end: %v, %v", open.stream.Msg(), open.stream.Err())
	}
	for _, call := range []func() error{
		func() error {
			_, err := f.vms.Type(t.Context(), &godwitv1.TypeRequest{Name: "web1", Input: []byte("z")})
			return err
		},
		func() error { _, err := f.tryConsole(&godwitv1.ConsoleRequest{Name: "web1"}); return err },
	} {
		if err := call(); fleet.CodeOf(err) != fleet.Conflict {
			t.Errorf("of a VM that is stopped: %v", err)
		}
	}
	if _, err := f.vms.Type(t.Context(), &godwitv1.TypeRequest{Name: "web2"}); fleet.CodeOf(err) != fleet.NotFound {
		t.Errorf("of no VM: %v", err)
	}
}

// own changes a VM's owner as its migration or its end does.
func (f *testFleet) own(name string, owner fleet.Owner, phase fleet.VMPhase) {
	f.t.Helper()
	vms := f.server.tables.vms
	entry, err := vms.Get(f.t.Context(), name)
	if err != nil {
		f.t.Fatal(err)
	}
	entry.Value.Owner, entry.Value.Phase = owner, phase
	if _, err := f.store.Commit(f.t.Context(), store.If(vms.At(name, entry.Version)), vms.Put(name, entry.Value)); err != nil {
		f.t.Fatal(err)
	}
}

// openedConsole tells hosts and what they said, a line for each.
type openedConsole struct {
	t      *testing.T
	stream *connect.ServerStreamForClient[godwitv1.ConsoleResponse]
	said   string
}

func (f *testFleet) openConsole(request *godwitv1.ConsoleRequest) *openedConsole {
	f.t.Helper()
	stream, err := f.tryConsole(request)
	if err != nil {
		f.t.Fatal(err)
	}
	o := &openedConsole{t: f.t, stream: stream}
	o.take()
	return o
}

// tryConsole gives the stream with its first message taken, or why there is none.
func (f *testFleet) tryConsole(request *godwitv1.ConsoleRequest) (*connect.ServerStreamForClient[godwitv1.ConsoleResponse], error) {
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	f.t.Cleanup(cancel)
	stream, err := f.vms.Console(ctx, request)
	if err == nil && !stream.Receive() {
		err = stream.Err()
	}
	return stream, err
}

func (o *openedConsole) await(text string) {
	o.t.Helper()
	for !strings.HasSuffix(o.said, text) {
		if !o.stream.Receive() {
			o.t.Fatalf("it ended with %q, without %q: %v", o.said, text, o.stream.Err())
		}
		o.take()
	}
}

func (o *openedConsole) take() {
	message := o.stream.Msg()
	if host := message.GetHost(); host != "" {
		o.said = strings.TrimPrefix(o.said+"\n"+host+": ", "\n")
	}
	o.said += string(message.GetOutput())
	if ended := message.GetEnded(); ended != "" {
		o.said += "\n" + ended
	}
}
