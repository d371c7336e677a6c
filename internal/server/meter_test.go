package server

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/wire"
)

// fakeMeasure is what a host's agent measures.
type fakeMeasure struct {
	mu    sync.Mutex
	guest *godwitv1.MeasureGuestRequest // the last of each
	link  *godwitv1.MeasureLinkRequest
}

func (m *fakeMeasure) MeasureGuest(_ context.Context, request *godwitv1.MeasureGuestRequest) (*godwitv1.MeasureGuestResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guest = request
	return &godwitv1.MeasureGuestResponse{
		Method: "sample", PageBytes: 4096, ZeroShare: 7, Curve: []*godwitv1.DirtyPoint{{PeriodUs: 1_000_000, Pages: 2}}, Began: timestamppb.New(time.Unix(9, 0)),
	}, nil
}

func (m *fakeMeasure) MeasureLink(_ context.Context, request *godwitv1.MeasureLinkRequest) (*godwitv1.MeasureLinkResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.link = request
	return &godwitv1.MeasureLinkResponse{BytesPerSecond: 3}, nil
}

// serveAgent answers for a host where servers and other hosts reach it.
func (f *testFleet) serveAgent(host string, path string, handler http.Handler) string {
	f.t.Helper()
	mux := http.NewServeMux()
	mux.Handle(path, handler)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	server := &http.Server{
		Handler: mux, TLSConfig: f.keeper(pki.Identity{Kind: pki.Host, Name: host}, 0).ServerConfig(),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	go func() { _ = server.ServeTLS(listener, "", "") }()
	f.t.Cleanup(func() { _ = server.Close() })
	return listener.Addr().String()
}

// reachedFleet is a fleet whose server finds the agents of hosts that listen at other
// addresses than they say: those of at.
func reachedFleet(t *testing.T) (f *testFleet, at map[string]string) {
	t.Helper()
	at = map[string]string{}
	return newFleet(t, func(c *Config) {
		c.DialHost = func(ctx context.Context, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, at[address])
		}
	}), at
}

// listens lets a host's agent be reached.
func listens(o *agentOptions) { o.hello = func(h *godwitv1.Hello) { h.Host.PeerPort = 7444 } }

// A VM is measured by its owner's host, and a link by the host at its begin.
func TestMeasure(t *testing.T) {
	t.Parallel()
	f, at := reachedFleet(t)
	h1 := f.join("h1", listens)
	f.join("h2", listens)
	f.join("h3")
	f.join("h4", listens)
	first, second := &fakeMeasure{}, &fakeMeasure{}
	path, handler := godwitv1connect.NewMeasureServiceHandler(first, connect.WithInterceptors(wire.ServerInterceptor()))
	at["10.9.0.1:7444"] = f.serveAgent("h1", path, handler)
	path, handler = godwitv1connect.NewMeasureServiceHandler(second, connect.WithInterceptors(wire.ServerInterceptor()))
	at["10.9.0.2:7444"] = f.serveAgent("h2", path, handler)
	at["10.9.0.4:7444"] = f.serveAgent("h4", "/", http.NotFoundHandler()) // of an older version
	f.running(h1, "web1")

	meter := hostMeter{f.server}
	measure := func(span time.Duration) (predict.Curve, float64, time.Time, error) {
		t.Helper()
		entry, err := f.server.getVM(t.Context(), "measure", "web1")
		if err != nil {
			t.Fatal(err)
		}
		return meter.guest(t.Context(), entry.Value, span, time.Unix(5, 0))
	}
	curve, zero, began, err := measure(2 * time.Second)
	if err != nil || len(curve) != 1 || curve[0].Dirty != 8192 || zero != 0 || !began.Equal(time.Unix(9, 0)) {
		t.Errorf("at h1: %v, %v, %v, %v", curve, zero, began, err)
	}
	uid := first.guest.GetUid()
	f.own("web1", fleet.Owner{Host: "h2", Epoch: 2}, fleet.VMRunning)
	if _, _, _, err := measure(time.Second); err != nil {
		t.Errorf("at h2: %v", err)
	}
	for asked, want := range map[*godwitv1.MeasureGuestRequest]*godwitv1.MeasureGuestRequest{
		first.guest:  {Vm: "web1", Epoch: 1, Uid: uid, SpanMs: 2000, After: timestamppb.New(time.Unix(5, 0))},
		second.guest: {Vm: "web1", Epoch: 2, Uid: uid, SpanMs: 1000, After: timestamppb.New(time.Unix(5, 0))},
	} {
		if uid == "" || !proto.Equal(asked, want) {
			t.Errorf("asked for %v, want %v", asked, want)
		}
	}
	link, err := meter.link(t.Context(), way{"h1", "h2"})
	if want := (&godwitv1.MeasureLinkRequest{Host: "h2", Address: "10.9.0.2", PeerPort: 7444}); err != nil || link != 3 || !proto.Equal(first.link, want) {
		t.Errorf("link: %v, %v; asked for %v, want %v", link, err, first.link, want)
	}
	refused := func(what string, want fleet.Code, call func() error) {
		t.Helper()
		if err := call(); fleet.CodeOf(err) != want {
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	guest := func() error { _, _, _, err := measure(time.Second); return err }
	between := func(from, to fleet.HostName) func() error {
		return func() error { _, err := meter.link(t.Context(), way{from, to}); return err }
	}
	refused("no such host", fleet.NotFound, between("h9", "h1"))
	refused("to no such host", fleet.NotFound, between("h1", "h9"))
	refused("an agent that listens for nobody", fleet.Unsupported, between("h3", "h1"))
	refused("an agent of an older version", fleet.Unsupported, between("h4", "h1"))
	f.own("web1", fleet.Owner{Host: "h3", Epoch: 3}, fleet.VMRunning)
	refused("on a host that listens for nobody", fleet.Unsupported, guest)
	f.own("web1", fleet.Owner{Epoch: 4}, fleet.VMStopped)
	refused("a VM that is stopped", fleet.Conflict, guest)
}
