package pki

import (
	"testing"
	"time"
)

func FuzzToken(f *testing.F) {
	f.Add(NewToken(Fingerprint{1}).Text())
	f.Add("gwt_")
	f.Add("gwt_AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			return
		}
		if again, err := ParseToken(token.Text()); err != nil || again != token {
			t.Errorf("%q comes back as another token, %v", text, err)
		}
	})
}

// FuzzRequest signs whatever a host sends for a signing request, or refuses it.
func FuzzRequest(f *testing.F) {
	now := time.Now()
	authority, err := NewAuthority(now)
	if err != nil {
		f.Fatal(err)
	}
	_, request, err := NewKeyAndRequest("h1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"))
	id := Identity{Kind: Host, Name: "h1"}
	f.Fuzz(func(t *testing.T, text []byte) {
		signed, err := authority.Sign(text, id, Names{}, 0, now)
		if err != nil {
			return
		}
		cert, err := parseCertificate(signed)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := identityOf(cert); err != nil || got != id {
			t.Errorf("signed for %v, %v", got, err)
		}
	})
}

// FuzzCredentials reads what may lie in a member's folder.
func FuzzCredentials(f *testing.F) {
	authority, err := NewAuthority(time.Now())
	if err != nil {
		f.Fatal(err)
	}
	key, request, err := NewKeyAndRequest("h1")
	if err != nil {
		f.Fatal(err)
	}
	cert, err := authority.Sign(request, Identity{Kind: Host, Name: "h1"}, Names{}, 0, time.Now())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cert, key, authority.CertificatePEM())
	f.Add(cert, []byte{}, cert)
	f.Fuzz(func(t *testing.T, cert, key, authority []byte) {
		_, _ = Credentials{Certificate: cert, Key: key, Authority: authority}.parse()
		_, _ = ParseAuthority(authority, key)
	})
}
