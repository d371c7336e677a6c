package store

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// TLSFiles names the files, all PEM, with which an external cluster is told
// from others and we show it who we are.
type TLSFiles struct {
	CA   string // authorities that may have signed the members' certificates; "" for the system's
	Cert string // our certificate and its chain; "" for none, which a secured cluster refuses
	Key  string // of Cert
}

// Load reads the files for Config.TLS. Cert and Key are read again for every
// connection, so that a renewed certificate is used without a restart; while
// they cannot be read, or do not fit together because only one of them has
// been replaced yet, the last good ones stay in use. CA is read once. Errors
// are *fleet.Error and name the file: Invalid for one that cannot be used,
// Denied for a certificate whose time has not come or is over.
func (f TLSFiles) Load() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12} // what etcd itself asks for
	if f.CA != "" {
		pem, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, badFile("authorities", f.CA, "", "", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, badFile("authorities", f.CA, "it holds no certificate in PEM", "name the file with the certificate of the cluster's authority", nil)
		}
	}
	if f.Cert == "" && f.Key == "" {
		return config, nil
	}
	first, err := f.pair()
	if err != nil {
		return nil, err
	}
	if err := f.checkCertificate(first.Leaf, time.Now()); err != nil {
		return nil, err
	}
	var last atomic.Pointer[tls.Certificate]
	last.Store(first)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if next, err := f.pair(); err == nil {
			last.Store(next)
		}
		return last.Load(), nil
	}
	return config, nil
}

func (f TLSFiles) pair() (*tls.Certificate, error) {
	cert, err := os.ReadFile(f.Cert)
	if err != nil {
		return nil, badFile("certificate", f.Cert, "", "", err)
	}
	key, err := os.ReadFile(f.Key)
	if err != nil {
		return nil, badFile("key", f.Key, "", "", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, badFile("certificate", f.Cert, "it does not go with the key in "+f.Key,
			"give a certificate and its own key, both in PEM and the key without a password", err)
	}
	return &pair, nil
}

// checkCertificate finds what a member of the cluster would refuse without
// saying why.
func (f TLSFiles) checkCertificate(leaf *x509.Certificate, now time.Time) error {
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return &fleet.Error{
			Code: fleet.Denied, Op: "read certificate", Subject: f.Cert,
			Cause: fmt.Sprintf("it is valid from %s to %s only", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339)),
			Hint:  "renew it, or set this machine's clock",
		}
	}
	uses := leaf.ExtKeyUsage
	if len(uses) > 0 && !slices.Contains(uses, x509.ExtKeyUsageClientAuth) && !slices.Contains(uses, x509.ExtKeyUsageAny) {
		return badFile("certificate", f.Cert, "it is not for clients", "have one issued with the extended key usage clientAuth", nil)
	}
	return nil
}

func badFile(what, path, cause, hint string, err error) error {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		cause, err = "it cannot be read", pathErr.Err // the path is the subject already
	}
	return &fleet.Error{Code: fleet.Invalid, Op: "read " + what, Subject: path, Cause: cause, Hint: hint, Err: err}
}
