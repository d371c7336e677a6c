package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"godwit.dev/godwit/internal/durable"
	"godwit.dev/godwit/internal/fleet"
)

// Names of the files in a member's folder.
const (
	fileCertificate = "cert.pem"
	fileKey         = "key.pem"
	fileNextKey     = "key.pem.next"
	fileAuthority   = "ca.pem"
)

// Credentials are a member's certificate with its key and the authority.
type Credentials struct {
	Certificate []byte // PEM
	Key         []byte // PEM, PKCS #8
	Authority   []byte // PEM
}

// parsed is Credentials that were found to fit together.
type parsed struct {
	Credentials
	identity Identity
	leaf     *x509.Certificate
	pair     tls.Certificate // with the authority in the chain
	roots    *x509.CertPool
}

// parse checks that key, certificate and authority belong together. Times are
// not checked.
func (c Credentials) parse() (*parsed, error) {
	authority, err := parseAuthorityCertificate(c.Authority)
	if err != nil {
		return nil, err
	}
	// The authority goes along in the handshake, for peers that enrol and
	// know its fingerprint only.
	pair, err := tls.X509KeyPair(slices.Concat(c.Certificate, c.Authority), c.Key)
	if err != nil {
		return nil, invalid("credentials", err)
	}
	p := &parsed{Credentials: c, leaf: pair.Leaf, pair: pair, roots: x509.NewCertPool()}
	p.roots.AddCert(authority)
	if err := p.leaf.CheckSignatureFrom(authority); err != nil {
		return nil, denied("the certificate is of another authority", "enrol again", err)
	}
	if p.identity, err = identityOf(p.leaf); err != nil {
		return nil, err
	}
	return p, nil
}

// Save writes the credentials of a member that has just enrolled to a folder,
// from where OpenKeeper takes them. A crash leaves the old or the new ones.
func (c Credentials) Save(dir string) error {
	if _, err := c.parse(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return saveFailed(dir, err)
	}
	// The rename of the certificate decides. Load completes what a crash
	// after it left undone.
	steps := []func() error{
		func() error { return writeFile(filepath.Join(dir, fileAuthority), c.Authority) },
		func() error { return writeFile(filepath.Join(dir, fileNextKey), c.Key) },
		func() error { return writeFile(filepath.Join(dir, fileCertificate), c.Certificate) },
		func() error { return adoptNextKey(dir) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return saveFailed(dir, err)
		}
	}
	return nil
}

func adoptNextKey(dir string) error {
	return durable.Rename(filepath.Join(dir, fileNextKey), filepath.Join(dir, fileKey))
}

// Load reads the credentials in a folder. NotFound when there are none yet.
func Load(dir string) (Credentials, error) {
	var c Credentials
	var err error
	read := func(name string) []byte {
		data, failure := os.ReadFile(filepath.Join(dir, name))
		err = errors.Join(err, failure)
		return data
	}
	c.Certificate, c.Authority = read(fileCertificate), read(fileAuthority)
	if errors.Is(err, fs.ErrNotExist) {
		return c, &fleet.Error{Code: fleet.NotFound, Op: "load credentials", Subject: dir,
			Cause: "there are none", Hint: "enrol with a token first"}
	}
	if next, failure := os.ReadFile(filepath.Join(dir, fileNextKey)); failure == nil {
		c.Key = next
		if _, failure := c.parse(); failure == nil {
			return c, adoptNextKey(dir)
		}
	}
	c.Key = read(fileKey)
	if err != nil {
		return c, &fleet.Error{Code: fleet.Failed, Op: "load credentials", Subject: dir, Cause: "they cannot be read", Err: err}
	}
	return c, nil
}

// WriteQEMUCreds writes the credentials to a folder in the layout that QEMU's
// tls-creds-x509 object reads, for either endpoint. QEMU reads it once, when
// the object is made, and file by file: give each instance a folder of its own.
func (c Credentials) WriteQEMUCreds(dir string) error {
	if _, err := c.parse(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return saveFailed(dir, err)
	}
	files := []struct {
		name string
		data []byte
	}{
		{"ca-cert.pem", c.Authority},
		{"server-cert.pem", c.Certificate}, {"server-key.pem", c.Key},
		{"client-cert.pem", c.Certificate}, {"client-key.pem", c.Key},
		{"dh-params.pem", keyExchangeGroup()},
	}
	for _, file := range files {
		if err := writeFile(filepath.Join(dir, file.name), file.data); err != nil {
			return saveFailed(dir, err)
		}
	}
	return nil
}

// writeFile replaces a file in one step, unless it has that content.
func writeFile(path string, data []byte) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return os.Chmod(path, 0o600)
	}
	return durable.WriteFile(path, data, 0o600)
}

func saveFailed(dir string, err error) error {
	return fmt.Errorf("save credentials in %s: %w", dir, err)
}
