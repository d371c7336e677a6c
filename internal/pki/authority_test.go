package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"slices"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// enrolled gives the credentials of a new member.
func enrolled(t *testing.T, a *Authority, id Identity, validity time.Duration) Credentials {
	t.Helper()
	key, request, err := NewKeyAndRequest(id.Name)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(request, id, Names{}, validity, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return Credentials{Certificate: cert, Key: key, Authority: a.CertificatePEM()}
}

func wantCode(t *testing.T, err error, code fleet.Code) {
	t.Helper()
	if got := fleet.CodeOf(err); got != code {
		t.Fatalf("error %v has code %q, want %q", err, got, code)
	}
}

func TestLeafOfEachKind(t *testing.T) {
	a := newAuthority(t)
	now := time.Now()
	const client, server = x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	for _, test := range []struct {
		id      Identity
		uri     string
		subject string
		dns     []string
		usages  []x509.ExtKeyUsage
	}{
		{Identity{Host, "h1"}, "spiffe://godwit/host/h1", "O=godwit,CN=h1", []string{"h1"}, []x509.ExtKeyUsage{client, server}},
		{Identity{Server, "s1"}, "spiffe://godwit/server/s1", "O=godwit-server,CN=s1", []string{ServerName}, []x509.ExtKeyUsage{client, server}},
		{Identity{Volume, "h1"}, "spiffe://godwit/volume/h1", "O=godwit-volume,CN=h1", []string{"h1.volume.godwit.internal"}, []x509.ExtKeyUsage{client, server}},
		{Identity{Admin, "root"}, "spiffe://godwit/admin/root", "O=godwit-admin,CN=root", nil, []x509.ExtKeyUsage{client}},
		{Identity{User, "h1"}, "spiffe://godwit/user/h1", "O=godwit-user,CN=h1", nil, []x509.ExtKeyUsage{client}},
	} {
		t.Run(test.id.String(), func(t *testing.T) {
			key, _ := newKey()
			cert, err := a.Issue(test.id, key.Public(), Names{IPs: []net.IP{net.IPv4(10, 0, 0, 1)}}, time.Hour, now)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := parseCertificate(cert)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := identityOf(leaf); got != test.id || err != nil {
				t.Errorf("identity %v, %v", got, err)
			}
			if leaf.URIs[0].String() != test.uri || test.id.DistinguishedName() != test.subject {
				t.Errorf("uri %v, subject %v", leaf.URIs[0], test.id.DistinguishedName())
			}
			if !slices.Equal(leaf.DNSNames, test.dns) || !slices.Equal(leaf.ExtKeyUsage, test.usages) {
				t.Errorf("DNS names %v, usages %v", leaf.DNSNames, leaf.ExtKeyUsage)
			}
			if want := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment; leaf.KeyUsage != want {
				t.Errorf("key usage %b, want %b", leaf.KeyUsage, want)
			}
			if leaf.IsCA || !leaf.IPAddresses[0].Equal(net.IPv4(10, 0, 0, 1)) {
				t.Errorf("authority %v, addresses %v", leaf.IsCA, leaf.IPAddresses)
			}
			if d := leaf.NotAfter.Sub(now).Round(time.Minute); d != time.Hour {
				t.Errorf("lives %v, want an hour", d)
			}
		})
	}
}

func TestAuthorityCertificate(t *testing.T) {
	a := newAuthority(t)
	cert := a.cert
	if !cert.IsCA || !cert.MaxPathLenZero || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		t.Errorf("authority %v, path %v, usage %b", cert.IsCA, cert.MaxPathLen, cert.KeyUsage)
	}
	for name, oid := range map[string]asn1.ObjectIdentifier{
		"key usage": {2, 5, 29, 15}, "basic constraints": {2, 5, 29, 19},
	} {
		i := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oid) })
		if i < 0 || !cert.Extensions[i].Critical {
			t.Errorf("%s is not a critical extension", name)
		}
	}
	if years := cert.NotAfter.Sub(cert.NotBefore).Hours() / 24 / 365; years < 9.9 || years > 10.1 {
		t.Errorf("lives %.1f years", years)
	}
}

func TestAuthoritySurvivesEncoding(t *testing.T) {
	a := newAuthority(t)
	key, err := a.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseAuthority(a.CertificatePEM(), key)
	if err != nil {
		t.Fatal(err)
	}
	if again.Fingerprint() != a.Fingerprint() {
		t.Error("the fingerprint has changed")
	}
	if _, err := enrolled(t, again, Identity{Host, "h1"}, 0).parse(); err != nil {
		t.Error(err)
	}
	other, _ := newAuthority(t).KeyPEM()
	leaf := enrolled(t, a, Identity{Host, "h1"}, 0)
	for name, in := range map[string]struct{ cert, key []byte }{
		"other key":          {a.CertificatePEM(), other},
		"leaf as authority":  {leaf.Certificate, leaf.Key},
		"no PEM":             {[]byte("x"), key},
		"swapped":            {key, a.CertificatePEM()},
		"damaged":            {encodeCertificate([]byte{0x30, 1}), key},
		"damaged key":        {a.CertificatePEM(), encodeBlock(blockKey, []byte{0x30})},
		"empty certificate":  {nil, key},
		"empty private part": {a.CertificatePEM(), nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseAuthority(in.cert, in.key)
			wantCode(t, err, fleet.Invalid)
		})
	}
}

// A request may ask for anything; only its key counts.
func TestSignIgnoresWhatTheRequestAsks(t *testing.T) {
	a := newAuthority(t)
	key, _ := newKey()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  Identity{Admin, "root"}.subject(),
		DNSNames: []string{ServerName, "h2"},
		URIs:     append(a.cert.URIs, Identity{Server, "s1"}.URI()),
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.Sign(encodeBlock(blockRequest, der), Identity{Host, "h1"}, Names{}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := parseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := identityOf(leaf); err != nil || id != (Identity{Host, "h1"}) {
		t.Errorf("identity %v, %v", id, err)
	}
	if !slices.Equal(leaf.DNSNames, []string{"h1"}) || leaf.Subject.CommonName != "h1" {
		t.Errorf("DNS names %v, common name %v", leaf.DNSNames, leaf.Subject.CommonName)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		t.Error("signed another key")
	}
}

func TestSignRefuses(t *testing.T) {
	a := newAuthority(t)
	now := time.Now()
	h1 := Identity{Host, "h1"}
	_, request, err := NewKeyAndRequest("h1")
	if err != nil {
		t.Fatal(err)
	}
	der, _ := decode(request, blockRequest)
	tampered := slices.Clone(der)
	tampered[len(tampered)-1] ^= 1
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsaRequest, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, rsaKey)
	p384Request, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	for name, in := range map[string]struct {
		request []byte
		id      Identity
		at      time.Time
		code    fleet.Code
	}{
		"no request":        {[]byte("x"), h1, now, fleet.Invalid},
		"a certificate":     {a.CertificatePEM(), h1, now, fleet.Invalid},
		"tampered":          {encodeBlock(blockRequest, tampered), h1, now, fleet.Invalid},
		"RSA":               {encodeBlock(blockRequest, rsaRequest), h1, now, fleet.Invalid},
		"another curve":     {encodeBlock(blockRequest, p384Request), h1, now, fleet.Invalid},
		"no kind":           {request, Identity{"", "h1"}, now, fleet.Invalid},
		"no name":           {request, Identity{Host, ""}, now, fleet.Invalid},
		"injected name":     {request, Identity{Host, "h1,O=godwit"}, now, fleet.Invalid},
		"path in name":      {request, Identity{User, "a/b"}, now, fleet.Invalid},
		"expired authority": {request, h1, now.Add(11 * 365 * 24 * time.Hour), fleet.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Sign(in.request, in.id, Names{}, 0, in.at)
			wantCode(t, err, in.code)
		})
	}
}

func TestLeafDoesNotOutliveTheAuthority(t *testing.T) {
	a := newAuthority(t)
	key, _ := newKey()
	cert, err := a.Issue(Identity{Host, "h1"}, key.Public(), Names{}, 48*time.Hour, a.cert.NotAfter.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := parseCertificate(cert)
	if !leaf.NotAfter.Equal(a.cert.NotAfter) {
		t.Errorf("leaf ends %v, authority %v", leaf.NotAfter, a.cert.NotAfter)
	}
}

// A signer's clock may be an hour from that of whoever verifies.
func TestCertificatesBearClocksApart(t *testing.T) {
	now := time.Now()
	for _, ahead := range []time.Duration{-time.Hour, time.Hour} {
		a, err := NewAuthority(now.Add(ahead))
		if err != nil {
			t.Fatal(err)
		}
		key, err := newKey()
		if err != nil {
			t.Fatal(err)
		}
		text, err := a.Issue(Identity{Host, "h1"}, key.Public(), Names{}, 0, now.Add(ahead))
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := parseCertificate(text)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(a.cert)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now}); err != nil {
			t.Errorf("signed by a clock that is %v ahead: %v", ahead, err)
		}
	}
}
