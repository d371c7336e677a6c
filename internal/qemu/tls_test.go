package qemu_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"godwit.dev/godwit/internal/qemu"
)

// authority signs the certificates of one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	text, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// creds makes the folder of a host's credentials.
func (a *authority) creds(t *testing.T, host string) string {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{Organization: []string{"fleet"}, CommonName: host},
		DNSNames:  []string{host},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, text []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca-cert.pem", "CERTIFICATE", a.cert.Raw)
	for _, end := range []string{"server", "client"} {
		write(end+"-cert.pem", "CERTIFICATE", cert)
		write(end+"-key.pem", "PRIVATE KEY", private)
	}
	return dir
}

func TestTLS(t *testing.T) {
	eachQEMU(t, func(t *testing.T, binary string) {
		own, foreign := newAuthority(t), newAuthority(t)
		for name, tt := range map[string]struct {
			source   *authority
			peer     string // whom the target lets in
			hostname string // whom the source expects
			plain    bool   // the source does not use TLS at all
			accepted bool
		}{
			"the right peer":           {source: own, peer: "O=fleet,CN=h1", hostname: "h2", accepted: true},
			"another peer is expected": {source: own, peer: "O=fleet,CN=h3", hostname: "h2"},
			"the name reversed":        {source: own, peer: "CN=h1,O=fleet", hostname: "h2"},
			"another target":           {source: own, peer: "O=fleet,CN=h1", hostname: "h3"},
			"a foreign authority":      {source: foreign, peer: "O=fleet,CN=h1", hostname: "h2"},
			"no TLS":                   {plain: true, peer: "O=fleet,CN=h1"},
		} {
			t.Run(name, func(t *testing.T) {
				source, target, out := pair(t, binary, qemu.Incoming{CredsDir: own.creds(t, "h2"), PeerName: tt.peer})
				out.CredsDir, out.TLSHostname = "", ""
				if !tt.plain {
					out.CredsDir, out.TLSHostname = tt.source.creds(t, "h1"), tt.hostname
				}
				fromSource, fromTarget := subscribe(t, source), subscribe(t, target)
				send(t, source, out)
				if !tt.accepted {
					refused(t, source, fromSource, fromTarget)
					runsOn(t, source, fromSource)
					return
				}
				await(t, fromSource, changed(qemu.StatusPreSwitchover))
				if err := source.ContinueSwitch(within(t)); err != nil {
					t.Fatal(err)
				}
				await(t, fromTarget, changed(qemu.StatusCompleted))
				resume(t, target)
			})
		}
	})
}

// runsOn demands that a source runs whose migration has failed. One that had
// stopped for the switchover says so a moment before it does.
func runsOn(t *testing.T, source *qemu.Instance, events *qemu.Subscription) {
	t.Helper()
	state, err := source.Status(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if !state.Running() {
		await(t, events, qemu.Event{Kind: qemu.Resumed})
		status(t, source, "running")
	}
}

// refused waits until the source has failed, and the target never completed.
func refused(t *testing.T, source *qemu.Instance, fromSource, fromTarget *qemu.Subscription) {
	t.Helper()
	timeout, loads := time.After(patience), fromTarget.Events()
	for {
		select {
		case event := <-fromSource.Events():
			switch event.Status {
			case qemu.StatusFailed:
				return
			case qemu.StatusPreSwitchover:
				// In TLS 1.3 a client is done before the server has judged it,
				// and this little guest fits into the sockets' buffers. It may
				// learn of the refusal before this is executed.
				_ = source.ContinueSwitch(within(t))
			case qemu.StatusCompleted:
				t.Fatal("the source completed")
			}
		case event, open := <-loads:
			if !open {
				loads = nil // QEMU 7.2 exits when it refuses
			} else if event.Status == qemu.StatusCompleted {
				t.Fatal("the target completed")
			}
		case <-timeout:
			t.Fatal("the source did not fail")
		}
	}
}
