package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Config says which server to call and how to prove who calls.
type Config struct {
	// Server is "unix:///path/of/socket" or "https://host:port"; empty means
	// DefaultServer. The files are used for https only. Of several servers with
	// commas between, each call goes to the first that can be connected to.
	Server string
	// CAFile holds the certificates of the authorities that may have signed
	// the server's certificate, in PEM; empty means the system's.
	CAFile string
	// CertFile and KeyFile hold the caller's certificate and key in PEM; both
	// or none. They are read anew for every connection, so that a renewed
	// certificate is used without a new Client.
	CertFile string
	KeyFile  string
	// TLS, if set, is used as it is instead of the files.
	TLS *tls.Config
	// Dial, if set, opens the connections of https.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialTimeout bounds the connecting to the server; 0 for 5 seconds. It is
	// not used with several servers, where the first attempts are shorter.
	DialTimeout time.Duration
}

func (c Config) server() string {
	if c.Server == "" {
		return DefaultServer
	}
	return c.Server
}

func (c Config) tls() (*tls.Config, error) {
	if c.TLS != nil {
		return c.TLS.Clone(), nil
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, unreadable("authority", c.CAFile, err)
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &fleet.Error{
				Code:    fleet.Invalid,
				Op:      "read authority",
				Subject: c.CAFile,
				Cause:   "it holds no certificate in PEM",
			}
		}
	}
	if c.CertFile == "" && c.KeyFile == "" {
		return settings, nil
	}
	if _, err := c.certificate(); err != nil {
		return nil, err
	}
	settings.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return c.certificate()
	}
	return settings, nil
}

func (c Config) certificate() (*tls.Certificate, error) {
	if c.CertFile == "" || c.KeyFile == "" {
		return nil, &fleet.Error{
			Code:  fleet.Invalid,
			Op:    "read certificate",
			Cause: "a certificate and its key go together, and only one of them was given",
			Hint:  "give both --cert and --key",
		}
	}
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	if err != nil {
		return nil, unreadable("certificate", c.CertFile, err)
	}
	return &pair, nil
}

func unreadable(what, file string, err error) error {
	return &fleet.Error{Code: fleet.Invalid, Op: "read " + what, Subject: file, Err: err}
}
