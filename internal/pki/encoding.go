package pki

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"godwit.dev/godwit/internal/fleet"
)

// Types of PEM blocks (RFC 7468).
const (
	blockCertificate = "CERTIFICATE"
	blockRequest     = "CERTIFICATE REQUEST"
	blockKey         = "PRIVATE KEY" // PKCS #8
)

func encodeBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func encodeCertificate(der []byte) []byte { return encodeBlock(blockCertificate, der) }

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return encodeBlock(blockKey, der), nil
}

// decode reads the first PEM block, which must be of the given type.
func decode(text []byte, kind string) ([]byte, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("no PEM block, want %s", kind)
	}
	if block.Type != kind {
		return nil, fmt.Errorf("a PEM block of type %s, want %s", block.Type, kind)
	}
	return block.Bytes, nil
}

func parseCertificate(text []byte) (*x509.Certificate, error) {
	der, err := decode(text, blockCertificate)
	if err != nil {
		return nil, invalid("certificate", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, invalid("certificate", err)
	}
	return cert, nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	der, err := decode(text, blockKey)
	if err != nil {
		return nil, invalid("key", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, invalid("key", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, invalid("key", fmt.Errorf("a key of type %T, want ECDSA", parsed))
	}
	return key, nil
}

func invalid(what string, err error) error {
	return &fleet.Error{Code: fleet.Invalid, Op: "read " + what, Cause: "it is damaged", Err: err}
}
