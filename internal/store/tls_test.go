package store_test

import (
	"bytes"
	"crypto/tls"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab/etcdtls"
	"godwit.dev/godwit/internal/store"
)

func load(t *testing.T, files store.TLSFiles) *tls.Config {
	t.Helper()
	config, err := files.Load()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func makeFiles(t *testing.T) etcdtls.Files {
	t.Helper()
	files, err := etcdtls.Make(t.TempDir(), netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// A cluster with TLS is a store for who has a certificate of it, and for nobody
// else; who is turned away is told why.
func TestSecureCluster(t *testing.T) {
	t.Parallel()
	c, files := startSecureCluster(t)
	other := makeFiles(t)
	config := store.Config{Endpoints: []string{"https://" + c.address}, LeaderTTL: leaderTTL}
	config.TLS = load(t, store.TLSFiles{CA: files.CA, Cert: files.ClientCert, Key: files.ClientKey})
	commit(t, open(t, config), nil, store.Put("a", nil))

	config.RequestTimeout = 500 * time.Millisecond
	for _, test := range []struct {
		name     string
		endpoint string
		files    store.TLSFiles
		cause    string
	}{
		{"no certificate", config.Endpoints[0], store.TLSFiles{CA: files.CA}, "certificate required"},
		{"a stranger's certificate", config.Endpoints[0], store.TLSFiles{CA: files.CA, Cert: other.ClientCert, Key: other.ClientKey}, "tls"},
		{"a stranger's authority", config.Endpoints[0], store.TLSFiles{CA: other.CA, Cert: files.ClientCert, Key: files.ClientKey}, "unknown authority"},
		{"the system's authorities", config.Endpoints[0], store.TLSFiles{Cert: files.ClientCert, Key: files.ClientKey}, "unknown authority"},
		{"another name", strings.Replace(config.Endpoints[0], "127.0.0.1", "localhost", 1),
			store.TLSFiles{CA: files.CA, Cert: files.ClientCert, Key: files.ClientKey}, "match localhost"},
		{"plain text", "http://" + c.address, store.TLSFiles{}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			config := config
			config.Endpoints = []string{test.endpoint}
			config.TLS = nil
			if test.files != (store.TLSFiles{}) {
				config.TLS = load(t, test.files)
			}
			_, err := store.Open(t.Context(), config)
			wantCode(t, err, fleet.Unavailable)
			if !strings.Contains(err.Error(), test.cause) || fleet.HintOf(err) == "" {
				t.Errorf("error %v, want %q and a hint", err, test.cause)
			}
		})
	}
}

func TestTLSFilesThatCannotBeUsed(t *testing.T) {
	files, other := makeFiles(t), makeFiles(t)
	for _, test := range []struct {
		name  string
		files store.TLSFiles
		file  string // that is named
		cause string
	}{
		{"no authority", store.TLSFiles{CA: "/nowhere/ca"}, "/nowhere/ca", "no such file"},
		{"authority without a certificate", store.TLSFiles{CA: files.ClientKey}, files.ClientKey, "no certificate in PEM"},
		{"no certificate", store.TLSFiles{Cert: "/nowhere/cert", Key: files.ClientKey}, "/nowhere/cert", "no such file"},
		{"no key", store.TLSFiles{Cert: files.ClientCert, Key: "/nowhere/key"}, "/nowhere/key", "no such file"},
		{"a folder", store.TLSFiles{Cert: "/", Key: files.ClientKey}, "/", "is a directory"},
		{"another's key", store.TLSFiles{Cert: files.ClientCert, Key: other.ClientKey}, files.ClientCert, "does not go with the key in " + other.ClientKey},
		{"a member's", store.TLSFiles{Cert: files.MemberCert, Key: files.MemberKey}, files.MemberCert, "not for clients"},
	} {
		_, err := test.files.Load()
		if fleet.CodeOf(err) != fleet.Invalid || !strings.Contains(err.Error(), test.file) || !strings.Contains(err.Error(), test.cause) {
			t.Errorf("%s: got %v, want %q of %s", test.name, err, test.cause, test.file)
		}
	}
}

// A renewed certificate is used for the next connection. While only one of its
// two files has been replaced, the old one stays in use.
func TestRenewedCertificateIsUsed(t *testing.T) {
	files, renewed := makeFiles(t), makeFiles(t)
	shown := func(config *tls.Config) []byte {
		pair, err := config.GetClientCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Certificate[0]
	}
	config := load(t, store.TLSFiles{Cert: files.ClientCert, Key: files.ClientKey})
	before := shown(config)
	if err := os.Rename(renewed.ClientCert, files.ClientCert); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(shown(config), before) {
		t.Error("a certificate is shown whose key is not there")
	}
	if err := os.Rename(renewed.ClientKey, files.ClientKey); err != nil {
		t.Fatal(err)
	}
	after := shown(config)
	if bytes.Equal(after, before) || !bytes.Equal(after, shown(load(t, store.TLSFiles{Cert: files.ClientCert, Key: files.ClientKey}))) {
		t.Error("the renewed certificate is not shown")
	}
}
