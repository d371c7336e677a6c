package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// DefaultValidity is the life of a leaf.
	DefaultValidity = 24 * time.Hour
	// maxBackdate makes a new certificate valid for peers whose clock is an
	// hour slow, and from a signer whose clock is fast. Of a very short life it
	// is a quarter, so that two thirds of the whole are never over at once.
	maxBackdate = 2 * time.Hour
	// ServerName is a DNS name in every server's certificate. Clients ask for
	// it whatever address they dial, so that addresses may change. It is no
	// possible name of a host.
	ServerName = "server.godwit.internal"
)

// VolumeServerName is the DNS name in a volume server's certificate. QEMU asks
// for it (tls-hostname), whatever address it dials. It is no possible name of a
// host, so that a volume server named like one is not taken for it.
func VolumeServerName(name string) string { return name + ".volume.godwit.internal" }

// Fingerprint is the SHA-256 of a certificate's DER form.
type Fingerprint [sha256.Size]byte

// Authority signs the fleet's certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority with a new key, valid for ten years.
func NewAuthority(now time.Time) (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{organization}, CommonName: "Godwit authority"},
		NotBefore:             now.Add(-maxBackdate),
		NotAfter:              now.Add(authorityLife),
		IsCA:                  true,
		BasicConstraintsValid: true, // Go marks it and KeyUsage critical
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read authority back: %w", err)
	}
	return &Authority{cert: cert, key: key}, nil
}

// ParseAuthority reads what CertificatePEM and KeyPEM wrote.
func ParseAuthority(certPEM, keyPEM []byte) (*Authority, error) {
	cert, err := parseAuthorityCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "read authority", Cause: "the key is not that of the certificate"}
	}
	return &Authority{cert: cert, key: key}, nil
}

func parseAuthorityCertificate(certPEM []byte) (*x509.Certificate, error) {
	cert, err := parseCertificate(certPEM)
	if err != nil {
		return nil, err
	}
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, &fleet.Error{Code: fleet.Invalid, Op: "read authority", Cause: "the certificate is not that of an authority"}
	}
	return cert, nil
}

// CertificatePEM is the authority's certificate, which every member has.
func (a *Authority) CertificatePEM() []byte { return encodeCertificate(a.cert.Raw) }

// KeyPEM is the authority's private key.
func (a *Authority) KeyPEM() ([]byte, error) { return encodeKey(a.key) }

// Fingerprint is that of the authority's certificate.
func (a *Authority) Fingerprint() Fingerprint { return sha256.Sum256(a.cert.Raw) }

// Names are what a leaf is valid for besides its identity. Hosts always have
// their name, servers ServerName, and volume servers their VolumeServerName, as
// DNS names.
type Names struct {
	DNS []string
	IPs []net.IP
}

// Issue signs a certificate for an identity and a public key (ECDSA P-256),
// valid from now for the given time but never longer than the authority;
// validity 0 is DefaultValidity.
func (a *Authority) Issue(id Identity, key crypto.PublicKey, names Names, validity time.Duration, now time.Time) ([]byte, error) {
	if err := id.check(); err != nil {
		return nil, signFailed(fleet.Invalid, id, err.Error(), nil)
	}
	public, ok := key.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, signFailed(fleet.Invalid, id, "the key is not ECDSA P-256", nil)
	}
	if now.After(a.cert.NotAfter) {
		return nil, signFailed(fleet.Denied, id, "the authority itself has expired", nil)
	}
	if validity <= 0 {
		validity = DefaultValidity
	}
	der, err := x509.CreateCertificate(rand.Reader, a.template(id, names, validity, now), a.cert, public, a.key)
	if err != nil {
		return nil, signFailed(fleet.Internal, id, "the certificate could not be made", err)
	}
	return encodeCertificate(der), nil
}

func (a *Authority) template(id Identity, names Names, validity time.Duration, now time.Time) *x509.Certificate {
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               id.subject(),
		NotBefore:             now.Add(-min(maxBackdate, validity/4)),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
		// QEMU demands both of these (crypto/tlscredsx509.c), although only
		// the first is used with ECDSA.
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    slices.Clone(names.DNS),
		IPAddresses: names.IPs,
	}
	template.URIs = append(template.URIs, id.URI())
	switch id.Kind {
	case Host:
		template.DNSNames = append(template.DNSNames, id.Name)
	case Server:
		template.DNSNames = append(template.DNSNames, ServerName)
	case Volume:
		template.DNSNames = append(template.DNSNames, VolumeServerName(id.Name))
	}
	if id.Kind == Host || id.Kind == Server || id.Kind == Volume {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if template.NotAfter.After(a.cert.NotAfter) {
		template.NotAfter = a.cert.NotAfter
	}
	return template
}

// Sign is Issue for the public key of a signing request, whose signature
// proves that the requester has the private key. Names in it are ignored.
func (a *Authority) Sign(requestPEM []byte, id Identity, names Names, validity time.Duration, now time.Time) ([]byte, error) {
	der, err := decode(requestPEM, blockRequest)
	if err != nil {
		return nil, signFailed(fleet.Invalid, id, "this is not a signing request", err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, signFailed(fleet.Invalid, id, "this is not a signing request", err)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, signFailed(fleet.Invalid, id, "the request is not signed with its key", err)
	}
	return a.Issue(id, request.PublicKey, names, validity, now)
}

// NewKeyAndRequest makes a private key and a request to sign its public key.
// name is for the reader only: the signer decides who the requester is.
func NewKeyAndRequest(name string) (keyPEM, requestPEM []byte, err error) {
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make signing request: %w", err)
	}
	keyPEM, err = encodeKey(key)
	return keyPEM, encodeBlock(blockRequest, der), err
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}

// serial is random and positive, in 16 bytes (RFC 5280 allows 20).
func serial() *big.Int {
	raw := make([]byte, 16)
	_, _ = rand.Read(raw) // never fails since Go 1.24
	raw[0] = raw[0]&0x7f | 0x40
	return new(big.Int).SetBytes(raw)
}

func signFailed(code fleet.Code, id Identity, cause string, err error) error {
	return &fleet.Error{Code: code, Op: "sign certificate", Subject: id.String(), Cause: cause, Err: err}
}
