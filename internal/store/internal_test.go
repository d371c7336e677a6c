package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"godwit.dev/godwit/internal/fleet"
)

func TestSupportedVersions(t *testing.T) {
	for version, want := range map[string]bool{
		"3.5.0": true, "3.7.3": true, "3.10.1": true, "3.6.0-rc.1": true,
		"3.4.30": false, "2.3.8": false, "4.0.0": false, "": false, "x.y": false, "3": false,
	} {
		if got := supported(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

// etcd's Fatal stops the goroutine it is called in, and nothing else.
func TestFatalStandsStill(t *testing.T) {
	hook := newFatalHook()
	if hook.cause() != nil {
		t.Fatal("failed from the start")
	}
	var out strings.Builder
	logger := bridgeLogger(slog.New(slog.NewTextHandler(&out, nil)), hook)
	logger.Info("a detail")
	logger.Warn("an advice", zap.String("key", "value"))
	if got := out.String(); strings.Contains(got, "a detail") || !strings.Contains(got, `level=INFO msg="an advice" component=etcd key=value`) {
		t.Errorf("logged %q", got)
	}
	for _, die := range []func(string, ...zap.Field){logger.Fatal, logger.Panic} {
		// These goroutines stand still for good; that is what is tested.
		go func() {
			die("cannot save", zap.Error(errors.New("no space")))
			t.Error("went on")
		}()
		<-hook.failed
	}
	if got := hook.cause().Error(); got != "cannot save: no space" {
		t.Errorf("cause %q", got)
	}
}

// Only the error that means "not yet" is kept down.
func TestStorageVersionTooEarly(t *testing.T) {
	const message = "failed to update storage version"
	var out strings.Builder
	logger := bridgeLogger(slog.New(slog.NewTextHandler(&out, nil)), nil)
	logger.Warn("Failed to detect schema version", zap.Error(errors.New("missing term information")))
	logger.Error(message, zap.Error(errors.New("cannot detect storage schema version: missing term information")))
	if out.Len() != 0 {
		t.Errorf("logged %q", out.String())
	}
	logger.Error(message, zap.Error(errors.New("cannot create migration plan")))
	if got := out.String(); !strings.Contains(got, `level=ERROR msg="`+message) {
		t.Errorf("logged %q", got)
	}
}

func TestCheckEndpoints(t *testing.T) {
	certificates := &tls.Config{MinVersion: tls.VersionTLS13}
	for _, test := range []struct {
		name   string
		config Config
		cause  string // "" if it is fine
	}{
		{"names", Config{Endpoints: []string{"https://a:2379", "https://b:2379/"}}, ""},
		{"addresses", Config{Endpoints: []string{"https://10.0.0.1:2379", "https://[fd00::1]:2379"}, TLS: certificates}, ""},
		{"plain, this machine", Config{Endpoints: []string{"http://127.0.0.1:2379", "http://[::1]:2379", "http://localhost:2379"}}, ""},
		{"plain, and that is wanted", Config{Endpoints: []string{"http://10.0.0.1:2379"}, Insecure: true}, ""},
		{"plain, another machine", Config{Endpoints: []string{"http://10.0.0.1:2379"}}, "plain text"},
		{"plain, a name like an address", Config{Endpoints: []string{"http://127.0.0.1.example.com:2379"}}, "plain text"},
		{"plain, every machine", Config{Endpoints: []string{"http://0.0.0.0:2379"}}, "plain text"},
		{"mixed", Config{Endpoints: []string{"https://10.0.0.1:2379", "http://127.0.0.1:2379"}}, "mixed"},
		{"certificates for nothing", Config{Endpoints: []string{"http://127.0.0.1:2379"}, TLS: certificates}, "does not use them"},
		{"no scheme", Config{Endpoints: []string{"10.0.0.1:2379"}}, "does not begin"},
		{"another scheme", Config{Endpoints: []string{"unix:///run/etcd"}}, "does not begin"},
		{"no host", Config{Endpoints: []string{"https://:2379"}}, "no host"},
		{"no port", Config{Endpoints: []string{"https://a"}}, "no port"},
		{"port zero", Config{Endpoints: []string{"https://a:0"}}, "no port"},
		{"port of a fantasy", Config{Endpoints: []string{"https://a:70000"}}, "no port"},
		{"a path", Config{Endpoints: []string{"https://a:2379/v3"}}, "more than"},
		{"a user", Config{Endpoints: []string{"https://me:pw@a:2379"}}, "more than"},
		{"nothing", Config{Endpoints: []string{""}}, "does not begin"},
	} {
		err := test.config.checkEndpoints()
		if test.cause == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if fleet.CodeOf(err) != fleet.Invalid || !strings.Contains(err.Error(), test.cause) || fleet.HintOf(err) == "" {
			t.Errorf("%s: got %v, want %q and a hint", test.name, err, test.cause)
		}
	}
}

// A certificate is refused before and after its time, and not within.
func TestCertificateHasItsTime(t *testing.T) {
	now := time.Now()
	leaf := &x509.Certificate{NotBefore: now, NotAfter: now.Add(time.Hour)}
	for _, test := range []struct {
		at   time.Duration
		want fleet.Code
	}{{-time.Minute, fleet.Denied}, {time.Minute, ""}, {2 * time.Hour, fleet.Denied}} {
		err := TLSFiles{Cert: "cert.pem"}.checkCertificate(leaf, now.Add(test.at))
		if fleet.CodeOf(err) != test.want || err != nil && (!strings.Contains(err.Error(), "cert.pem") || fleet.HintOf(err) == "") {
			t.Errorf("at %v: got %v, want %q", test.at, err, test.want)
		}
	}
}
