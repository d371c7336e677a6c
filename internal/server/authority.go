package server

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
	"godwit.dev/godwit/internal/store"
)

// adminValidity is long because an administrator's bundle is copied to where
// nothing renews it.
const adminValidity = 365 * 24 * time.Hour

// openAuthority loads the fleet's authority. The first server of a fleet makes
// it; of two that start at once one wins and both use the winner's.
func openAuthority(ctx context.Context, t tables) (*pki.Authority, error) {
	entry, err := t.authority.Get(ctx, authorityKey)
	if err == nil {
		return pki.ParseAuthority(entry.Value.Certificate, entry.Value.Key)
	}
	if fleet.CodeOf(err) != fleet.NotFound {
		return nil, err
	}
	authority, err := pki.NewAuthority(time.Now())
	if err != nil {
		return nil, err
	}
	key, err := authority.KeyPEM()
	if err != nil {
		return nil, err
	}
	record := authorityRecord{Certificate: authority.CertificatePEM(), Key: key}
	_, err = t.store.Commit(ctx, store.If(t.authority.Absent(authorityKey)), t.authority.Put(authorityKey, record))
	if fleet.CodeOf(err) == fleet.Conflict {
		return openAuthority(ctx, t)
	}
	return authority, err
}

// keepCertificate issues a certificate into dir and keeps it fresh there.
func keepCertificate(dir string, authority *pki.Authority, id pki.Identity, names pki.Names, validity time.Duration, logger *slog.Logger) (*pki.Keeper, error) {
	sign := func(_ context.Context, request []byte) (cert, ca []byte, err error) {
		cert, err = authority.Sign(request, id, names, validity, time.Now())
		return cert, authority.CertificatePEM(), err
	}
	key, request, err := pki.NewKeyAndRequest(id.Name)
	if err != nil {
		return nil, err
	}
	cert, ca, err := sign(context.Background(), request)
	if err != nil {
		return nil, err
	}
	if err := (pki.Credentials{Certificate: cert, Key: key, Authority: ca}).Save(dir); err != nil {
		return nil, err
	}
	return pki.OpenKeeper(dir, sign, logger)
}

// openKeepers gives the server its certificate and leaves one for the
// administrator in the folder "admin". Both are made anew at every start, so
// that names and authority are always the present ones.
func (s *Server) openKeepers() (err error) {
	names := pki.Names{DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	for _, name := range s.config.Names {
		if ip := net.ParseIP(name); ip != nil {
			names.IPs = append(names.IPs, ip)
		} else {
			names.DNS = append(names.DNS, name)
		}
	}
	dir := s.config.DataDir
	s.certificate, err = keepCertificate(filepath.Join(dir, "server"), s.authority,
		pki.Identity{Kind: pki.Server, Name: "server"}, names, pki.DefaultValidity, s.log)
	if err != nil {
		return err
	}
	s.admin, err = keepCertificate(filepath.Join(dir, "admin"), s.authority,
		pki.Identity{Kind: pki.Admin, Name: "admin"}, pki.Names{}, adminValidity, s.log)
	return err
}

// signRequest signs the PKCS #10 request (DER) of a member and gives the
// certificate and the authority's (DER).
func (s *Server) signRequest(request []byte, id pki.Identity, names pki.Names, validity time.Duration) (cert, authority []byte, err error) {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request})
	signed, err := s.authority.Sign(text, id, names, validity, time.Now())
	if err != nil {
		return nil, nil, err
	}
	return derOf(signed), derOf(s.authority.CertificatePEM()), nil
}

func derOf(text []byte) []byte {
	block, _ := pem.Decode(text)
	return block.Bytes
}

// checkRequest refuses what is no signing request before a token is spent.
func checkRequest(request []byte) error {
	parsed, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = parsed.CheckSignature()
	}
	if err != nil {
		return &fleet.Error{
			Code: fleet.Invalid, Op: "sign certificate", Cause: "the signing request is not valid",
			Fields: []fleet.FieldError{{Path: "certificate_request", Problem: "is not a PKCS #10 request in DER form: " + err.Error()}},
		}
	}
	return nil
}
