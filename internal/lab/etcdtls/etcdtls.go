// Package etcdtls makes the certificates of an etcd cluster for tests: an
// authority, a certificate that all members share and one for their clients.
// They are good for a day.
package etcdtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

const validity = 24 * time.Hour

// Files are paths of PEM files.
type Files struct {
	CA                    string // the authority's certificate
	MemberCert, MemberKey string // for servers; with several members for clients, too
	ClientCert, ClientKey string // for clients only
}

// Make makes a new authority and its certificates, for members at some
// addresses, and writes them to a folder that exists.
func Make(dir string, members ...netip.Addr) (Files, error) {
	in := func(name string) string { return filepath.Join(dir, name) }
	files := Files{
		CA:         in("ca.pem"),
		MemberCert: in("member.pem"), MemberKey: in("member-key.pem"),
		ClientCert: in("client.pem"), ClientKey: in("client-key.pem"),
	}
	root, err := newPair(&x509.Certificate{
		Subject: pkix.Name{CommonName: "etcd of a test"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	if err != nil {
		return files, err
	}
	if err := writePEM(files.CA, "CERTIFICATE", root.cert.Raw); err != nil {
		return files, err
	}
	member := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "member"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, address := range members {
		member.IPAddresses = append(member.IPAddresses, address.AsSlice())
	}
	if len(members) > 1 {
		member.ExtKeyUsage = append(member.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	err = issue(root, files.MemberCert, files.MemberKey, member)
	if err != nil {
		return files, err
	}
	return files, issue(root, files.ClientCert, files.ClientKey, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "godwit"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newPair has parent sign a template with a new key; without a parent it signs
// itself.
func newPair(template *x509.Certificate, parent *pair) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	now := time.Now()
	template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(validity)
	if parent == nil {
		parent = &pair{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", template.Subject.CommonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	return &pair{cert: cert, key: key}, err
}

func issue(root *pair, certFile, keyFile string, template *x509.Certificate) error {
	one, err := newPair(template, root)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(one.key)
	if err != nil {
		return err
	}
	if err := writePEM(keyFile, "PRIVATE KEY", der); err != nil {
		return err
	}
	return writePEM(certFile, "CERTIFICATE", one.cert.Raw)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
