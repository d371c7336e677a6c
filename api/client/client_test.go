package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

type vmService struct {
	godwitv1connect.UnimplementedVMServiceHandler
	cut func() // ends the server's connections
}

var errLocked = &fleet.Error{
	Code: fleet.Conflict, Op: "watch", Subject: "vm web1", Cause: "it is locked", Hint: "wait",
	Err: fmt.Errorf("record: %w", &fleet.Error{Code: fleet.Exhausted, Cause: "full"}),
}

func (vmService) List(_ context.Context, request *godwitv1.ListVMsRequest) (*godwitv1.ListVMsResponse, error) {
	switch request.GetPage().GetToken() {
	case "":
		return &godwitv1.ListVMsResponse{Vms: []*godwitv1.VM{{Name: "a"}, {Name: "b"}}, NextToken: "2"}, nil
	case "2":
		return &godwitv1.ListVMsResponse{Vms: []*godwitv1.VM{{Name: "c"}}}, nil
	}
	return nil, errLocked
}

func (s vmService) Watch(ctx context.Context, request *godwitv1.WatchVMsRequest, stream *connect.ServerStream[godwitv1.WatchVMsResponse]) error {
	if err := stream.Send(&godwitv1.WatchVMsResponse{Vm: &godwitv1.VM{Name: request.GetName()}}); err != nil {
		return err
	}
	switch request.GetName() {
	case "locked":
		return errLocked
	case "cut":
		s.cut()
	case "ends":
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// serve gives the address of a server with real connections and codec.
func serve(t *testing.T) string {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(nil)
	server.Listener.Close()
	server.Listener = listener
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewVMServiceHandler(
		vmService{cut: server.CloseClientConnections}, connect.WithInterceptors(wire.ServerInterceptor())))
	server.Config.Handler = mux
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return "unix://" + socket
}

func dial(t *testing.T, config client.Config) *client.Client {
	t.Helper()
	c, err := client.Dial(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestListGoesThroughAllPages(t *testing.T) {
	c := dial(t, client.Config{Server: serve(t)})
	var names []string
	for vm, err := range c.VMs(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, vm.GetName())
	}
	if got := strings.Join(names, " "); got != "a b c" {
		t.Errorf("got %q", got)
	}
	for range c.VMs(t.Context(), "") {
		break // must not fetch or yield any more
	}
}

func TestErrorsOfStreams(t *testing.T) {
	c := dial(t, client.Config{Server: serve(t)})
	watch := func(ctx context.Context, name string) error {
		stream, err := c.VM.Watch(ctx, &godwitv1.WatchVMsRequest{Name: name})
		if err != nil {
			return err
		}
		defer stream.Close()
		for stream.Receive() {
		}
		return stream.Err()
	}
	if err := watch(t.Context(), "ends"); err != nil {
		t.Errorf("a stream that ends well: %v", err)
	}
	err := watch(t.Context(), "locked")
	if e, ok := errors.AsType[*fleet.Error](err); !ok || err.Error() != errLocked.Error() || e.Hint != "wait" {
		t.Errorf("an error of the handler: %v", err)
	}
	if err := watch(t.Context(), "cut"); fleet.CodeOf(err) != fleet.Unavailable || fleet.HintOf(err) == "" {
		t.Errorf("a cut connection: %v (%s)", err, fleet.CodeOf(err))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := watch(ctx, "waits"); !errors.Is(err, context.DeadlineExceeded) || fleet.CodeOf(err) != fleet.Deadline {
		t.Errorf("a deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if err := watch(ctx, "waits"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestUnreachableServerSaysWhatToDo(t *testing.T) {
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	gone := filepath.Join(t.TempDir(), "gone")
	tests := []struct {
		name, server string
		code         fleet.Code
		text, hint   string
	}{
		{"no socket", "unix://" + gone, fleet.Unavailable, "cannot reach the server at unix://" + gone, "godwit server"},
		{"no TLS", "https://" + plain.Listener.Addr().String(), fleet.Unavailable, "cannot reach", "--server"},
		{"authority unknown", secure.URL, fleet.Unavailable, "unknown authority", "--ca"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, client.Config{Server: test.server})
			_, err := c.VM.Get(t.Context(), &godwitv1.GetVMRequest{})
			if fleet.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %q (%s)", err, fleet.CodeOf(err))
			}
			if hint := fleet.HintOf(err); !strings.Contains(hint, test.hint) {
				t.Errorf("hint %q lacks %q", hint, test.hint)
			}
		})
	}
}

func TestDialRefusesBadConfig(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "missing.pem")
	for name, config := range map[string]client.Config{
		"not a url":     {Server: "://"},
		"no scheme":     {Server: "host:7443"},
		"plain http":    {Server: "http://host:7443"},
		"relative path": {Server: "unix://run/godwit.sock"},
		"no host":       {Server: "https://"},
		"with a path":   {Server: "https://host/x"},
		"no authority":  {Server: "https://host", CAFile: empty},
		"not PEM":       {Server: "https://host", CAFile: "/dev/null"},
		"key missing":   {Server: "https://host", CertFile: empty},
		"no pair":       {Server: "https://host", CertFile: empty, KeyFile: empty},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := client.Dial(config); fleet.CodeOf(err) != fleet.Invalid {
				t.Errorf("got %v", err)
			}
		})
	}
}
