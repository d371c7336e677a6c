package client_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/api/godwit/v1/godwitv1connect"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

// issue writes a certificate for name and its key as PEM; without a parent it
// signs itself, as an authority does.
func issue(t *testing.T, folder, name string, parent *tls.Certificate) (certFile, keyFile string, pair tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, IsCA: parent == nil,
	}
	signer, signed := any(key), template
	if parent != nil {
		signer, signed = parent.PrivateKey, parent.Leaf
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signed, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(folder, name+".crt"), filepath.Join(folder, name+".key")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
	for file, data := range map[string][]byte{certFile: certPEM, keyFile: keyPEM} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pair, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile, pair
}

// serveTLS demands a certificate of the authority and notes the serial number
// of each connection's.
func serveTLS(t *testing.T, folder string) (server *httptest.Server, authority tls.Certificate, caFile string, serials chan string) {
	caFile, _, authority = issue(t, folder, "authority", nil)
	_, _, own := issue(t, folder, "server", &authority)
	pool := x509.NewCertPool()
	pool.AddCert(authority.Leaf)
	serials = make(chan string, 8)
	server = httptest.NewUnstartedServer(nil)
	mux := http.NewServeMux()
	mux.Handle(godwitv1connect.NewVMServiceHandler(vmService{}, connect.WithInterceptors(wire.ServerInterceptor())))
	server.Config.Handler = mux
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(state tls.ConnectionState) error {
			serials <- state.PeerCertificates[0].SerialNumber.String()
			return nil
		},
	}
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, authority, caFile, serials
}

func TestRenewedCertificateIsUsedByTheNextConnection(t *testing.T) {
	folder := t.TempDir()
	server, authority, caFile, serials := serveTLS(t, folder)
	certFile, keyFile, _ := issue(t, folder, "me", &authority)
	c := dial(t, client.Config{Server: server.URL, CAFile: caFile, CertFile: certFile, KeyFile: keyFile})
	list := func() string {
		t.Helper()
		if _, err := c.VM.List(t.Context(), &godwitv1.ListVMsRequest{}); err != nil {
			t.Fatal(err)
		}
		return <-serials
	}
	first := list()
	_, _, renewed := issue(t, folder, "me", &authority)
	c.Close()
	if second := list(); second == first || second != renewed.Leaf.SerialNumber.String() {
		t.Errorf("serial %s, then %s, want %s", first, second, renewed.Leaf.SerialNumber)
	}
}

func TestServerRefusesAStranger(t *testing.T) {
	folder := t.TempDir()
	server, _, caFile, _ := serveTLS(t, folder)
	certFile, keyFile, _ := issue(t, folder, "stranger", nil)
	for name, config := range map[string]client.Config{
		"no certificate":    {Server: server.URL, CAFile: caFile},
		"another authority": {Server: server.URL, CAFile: caFile, CertFile: certFile, KeyFile: keyFile},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := dial(t, config).VM.List(t.Context(), &godwitv1.ListVMsRequest{})
			if fleet.CodeOf(err) != fleet.Denied || fleet.HintOf(err) == "" {
				t.Errorf("got %v (%s)", err, fleet.CodeOf(err))
			}
		})
	}
}
