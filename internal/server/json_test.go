package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// overSocket posts JSON to a method as any program of this machine may.
func (f *testFleet) overSocket(method, contentType, body string) (int, string) {
	f.t.Helper()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.server.config.Socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(f.t.Context(), http.MethodPost, "http://godwit/godwit.v1."+method, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	response, err := transport.RoundTrip(request)
	if err != nil {
		f.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return response.StatusCode, string(text)
}

// A field that a request does not have is a mistake of the caller's, never
// nothing.
func TestMisspeltJSON(t *testing.T) {
	f := newFleet(t)
	for _, test := range []struct {
		method, body string
		status       int
		says         []string
	}{
		{"VMService/List", `{}`, http.StatusOK, nil},
		{"VMService/List", `{"page":{"size":1}}`, http.StatusOK, nil},
		{"VMService/List", `{"pageSize":1}`, http.StatusBadRequest, []string{"invalid_argument", "pageSize", "ListVMsRequest"}},
		{"VMService/List", `{"page":{"sice":1}}`, http.StatusBadRequest, []string{"invalid_argument", "sice"}},
		{"VMService/List", ``, http.StatusBadRequest, []string{"invalid_argument", "empty"}},
		{"MigrationService/Create", `{"vm":"web","tagret":"h2"}`, http.StatusBadRequest, []string{"invalid_argument", "tagret"}},
		{"MigrationService/Create", `{"vm":"web","policy":{"bandwidthMax":"1"}}`, http.StatusNotFound, []string{"not_found", "web"}},
		{"MigrationService/Create", `{"vm":"web","policy":{"bandwidth_max":"1"}}`, http.StatusNotFound, []string{"not_found", "web"}},
	} {
		for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
			status, text := f.overSocket(test.method, contentType, test.body)
			if status != test.status {
				t.Errorf("%s %s as %s: %d, want %d: %s", test.method, test.body, contentType, status, test.status, text)
			}
			for _, word := range test.says {
				if !strings.Contains(text, word) {
					t.Errorf("%s %s as %s: %s does not say %q", test.method, test.body, contentType, text, word)
				}
			}
		}
	}
}
