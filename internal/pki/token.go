package pki

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

const (
	tokenPrefix = "gwt_"
	secretSize  = 20 // bytes: 160 bits
	tokenSize   = secretSize + sha256.Size + crc32.Size
)

// Token lets one host, or volume server, enrol once. It is a secret; only Text reveals it.
type Token struct {
	secret    [secretSize]byte
	authority Fingerprint
}

// NewToken makes a token for a fleet with that authority.
func NewToken(authority Fingerprint) Token {
	t := Token{authority: authority}
	_, _ = rand.Read(t.secret[:]) // never fails since Go 1.24
	return t
}

// Text is the token as the operator passes it on: "gwt_" and 75 characters of
// base64url. It ends in a checksum, which tells a mistyped token from a
// refused one.
func (t Token) Text() string {
	raw := append(t.secret[:], t.authority[:]...)
	raw = binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// String hides the secret, so that a logged token is harmless.
func (t Token) String() string { return tokenPrefix + "…" }

// ParseToken reads a token's Text. Invalid when it is mistyped.
func ParseToken(text string) (Token, error) {
	body, found := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if !found || err != nil || len(raw) != tokenSize {
		return Token{}, badToken("this is not a token: it begins with " + tokenPrefix + " and has 79 characters")
	}
	sum := len(raw) - crc32.Size
	if binary.BigEndian.Uint32(raw[sum:]) != crc32.ChecksumIEEE(raw[:sum]) {
		return Token{}, badToken("the token is mistyped: its checksum is wrong")
	}
	var t Token
	copy(t.secret[:], raw)
	copy(t.authority[:], raw[secretSize:])
	return t, nil
}

func badToken(cause string) error {
	return &fleet.Error{Code: fleet.Invalid, Op: "read token", Cause: cause, Hint: "copy the whole token, in one piece"}
}

// Hash is what may be stored of a token, in hexadecimal. The secret is random
// and long, so that a plain hash cannot be searched.
func (t Token) Hash() string {
	sum := sha256.Sum256(t.secret[:])
	return hex.EncodeToString(sum[:])
}

// TokenRecord is a token as the server keeps it, under its Hash.
type TokenRecord struct {
	Hash      string         `json:"hash"`
	Kind      Kind           `json:"kind,omitempty"` // "" for a host
	Host      fleet.HostName `json:"host"`           // the name, of whatever kind
	ExpiresAt time.Time      `json:"expiresAt"`
	UsedAt    time.Time      `json:"usedAt,omitzero"`
}

// Verify accepts the token of this record for one member, once, and before it
// expires; else Denied. The caller stores UsedAt in the same commit as what
// the token allows, so that it works once only.
func (r TokenRecord) Verify(t Token, id Identity, now time.Time) error {
	refuse := func(cause string) *fleet.Error {
		return &fleet.Error{
			Code: fleet.Denied, Op: "enrol", Subject: id.String(),
			Cause: cause, Hint: "make a new token for it: godwit " + string(id.Kind) + " token " + id.Name,
		}
	}
	switch {
	case subtle.ConstantTimeCompare([]byte(r.Hash), []byte(t.Hash())) != 1:
		return refuse("the token is not known")
	case cmp.Or(r.Kind, Host) != id.Kind || string(r.Host) != id.Name:
		return refuse("the token is for another " + string(cmp.Or(r.Kind, Host)))
	case !r.UsedAt.IsZero():
		return refuse("the token was used already")
	case !now.Before(r.ExpiresAt):
		expired := refuse("the token expired at " + r.ExpiresAt.UTC().Format(time.RFC3339))
		expired.Hint += "; if that time is still to come, the clocks of the servers are apart: set them"
		return expired
	}
	return nil
}

// CheckAuthority refuses an authority that is not the one of the token.
func (t Token) CheckAuthority(certPEM []byte) error {
	cert, err := parseAuthorityCertificate(certPEM)
	if err != nil {
		return err
	}
	if sha256.Sum256(cert.Raw) != t.authority {
		return denied("the server is of another fleet than the token", "check the server's address, or make a new token there", nil)
	}
	return nil
}

// ClientConfig is for the call that enrols: it has no certificate yet, and
// knows the server by the fingerprint of the authority that the server sends
// along with its certificate.
func (t Token) ClientConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: ServerName,
		// The usual verification needs the authority beforehand; the one
		// below takes its place and is no weaker.
		InsecureSkipVerify: true,
		VerifyConnection:   t.verifyServer,
	}
}

func (t Token) verifyServer(state tls.ConnectionState) error {
	roots := x509.NewCertPool()
	for _, cert := range state.PeerCertificates {
		if sha256.Sum256(cert.Raw) == t.authority {
			roots.AddCert(cert)
		}
	}
	leaf := state.PeerCertificates[0]
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: ServerName}); err != nil {
		return denied("the server is not of the fleet that made the token",
			"check the server's address, or make a new token there", err)
	}
	peer, err := identityOf(leaf)
	if err != nil {
		return fmt.Errorf("verify server: %w", err)
	}
	return Expect{Kind: Server}.Check(peer)
}
