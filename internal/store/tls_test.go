package store_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

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

// A cluster that others use, too: with etcd's own authentication the
// certificate's common name is a user, who has a role on our prefix only.
func TestSharedCluster(t *testing.T) {
	t.Parallel()
	c, files := startSecureCluster(t)
	config := store.Config{Endpoints: []string{"https://" + c.address}, LeaderTTL: leaderTTL}
	config.TLS = load(t, store.TLSFiles{CA: files.CA, Cert: files.ClientCert, Key: files.ClientKey})
	authenticate(t, config, "godwit") // the name in files.ClientCert

	s := open(t, config)
	leader := campaign(t, s, "us")
	version := commit(t, s, store.If(leader.Held()), store.Put("a", nil))
	watching, stop := context.WithCancel(t.Context())
	defer stop()
	if e := next(t, s.Watch(watching, "a", version-1)); e.Version != version {
		t.Errorf("got version %d, want %d", e.Version, version)
	}
	if _, _, err := s.All(t.Context(), ""); err != nil {
		t.Error(err)
	}
	leader.Resign()

	config.Prefix = "/others/"
	_, err := open(t, config).Commit(t.Context(), nil, store.Put("a", nil))
	if fleet.CodeOf(err) != fleet.Denied || errors.Is(err, store.ErrOutcomeUnknown) || fleet.HintOf(err) == "" {
		t.Errorf("another's prefix: %v", err)
	}
}

// authenticate gives a user our prefix and turns etcd's authentication on.
func authenticate(t *testing.T, config store.Config, user string) {
	t.Helper()
	root, err := clientv3.New(clientv3.Config{Endpoints: config.Endpoints, TLS: config.TLS, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx := t.Context()
	byCertificate := &clientv3.UserAddOptions{NoPassword: true}
	for _, step := range []func() error{
		func() error { _, err := root.UserAddWithOptions(ctx, "root", "", byCertificate); return err },
		func() error { _, err := root.RoleAdd(ctx, "root"); return err },
		func() error { _, err := root.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := root.UserAddWithOptions(ctx, user, "", byCertificate); return err },
		func() error { _, err := root.RoleAdd(ctx, "fleet"); return err },
		func() error {
			end := clientv3.GetPrefixRangeEnd(store.DefaultPrefix)
			_, err := root.RoleGrantPermission(ctx, "fleet", store.DefaultPrefix, end, clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := root.UserGrantRole(ctx, user, "fleet"); return err },
		func() error { _, err := root.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}
