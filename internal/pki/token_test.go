package pki

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"godwit.dev/godwit/internal/fleet"
)

func TestTokenSurvivesItsText(t *testing.T) {
	token := NewToken(newAuthority(t).Fingerprint())
	again, err := ParseToken(" " + token.Text() + "\n")
	if err != nil || again != token {
		t.Fatalf("got %v, %v", again, err)
	}
	if len(token.Text()) != 79 {
		t.Errorf("the text has %d characters", len(token.Text()))
	}
	if NewToken(token.authority) == token {
		t.Error("two tokens are equal")
	}
	for _, shown := range []string{token.String(), fmt.Sprint(token), fmt.Sprintf("%+v", token), token.Hash()} {
		if strings.Contains(token.Text(), strings.TrimSuffix(strings.TrimPrefix(shown, tokenPrefix), "…")) && shown != "gwt_…" {
			t.Errorf("%q reveals the token", shown)
		}
	}
}

// Every change of one character is noticed.
func TestTokenTampering(t *testing.T) {
	text := NewToken(newAuthority(t).Fingerprint()).Text()
	for i := range text {
		for _, c := range []byte("A_b") {
			if text[i] == c {
				continue
			}
			changed := text[:i] + string(c) + text[i+1:]
			if _, err := ParseToken(changed); fleet.CodeOf(err) != fleet.Invalid {
				t.Fatalf("changed at %d: %v", i, err)
			}
		}
	}
	for _, bad := range []string{"", "gwt_", text[:78], text + "A", strings.ToUpper(text), text[4:]} {
		_, err := ParseToken(bad)
		wantCode(t, err, fleet.Invalid)
	}
}

func TestTokenRecord(t *testing.T) {
	now := time.Now()
	authority := newAuthority(t).Fingerprint()
	token := NewToken(authority)
	h1 := Identity{Host, "h1"}
	good := TokenRecord{Hash: token.Hash(), Host: "h1", ExpiresAt: now.Add(time.Minute)}
	for name, test := range map[string]struct {
		change func(*TokenRecord)
		token  Token
		id     Identity
		want   string // "" accepts
	}{
		"good":       {func(*TokenRecord) {}, token, h1, ""},
		"other":      {func(*TokenRecord) {}, NewToken(authority), h1, "not known"},
		"other host": {func(*TokenRecord) {}, token, Identity{Host, "h2"}, "another host"},
		"other kind": {func(*TokenRecord) {}, token, Identity{Volume, "h1"}, "another host"},
		"volume":     {func(r *TokenRecord) { r.Kind = Volume }, token, Identity{Volume, "h1"}, ""},
		"not a host": {func(r *TokenRecord) { r.Kind = Volume }, token, h1, "another volume"},
		"used":       {func(r *TokenRecord) { r.UsedAt = now }, token, h1, "used already"},
		"expired":    {func(r *TokenRecord) { r.ExpiresAt = now }, token, h1, "expired at"},
		"no hash":    {func(r *TokenRecord) { r.Hash = "" }, token, h1, "not known"},
	} {
		t.Run(name, func(t *testing.T) {
			record := good
			test.change(&record)
			err := record.Verify(test.token, test.id, now)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantCode(t, err, fleet.Denied)
			if !strings.Contains(err.Error(), test.want) || fleet.HintOf(err) == "" {
				t.Errorf("error %q with hint %q", err, fleet.HintOf(err))
			}
		})
	}
}

func TestTokenChecksTheAuthority(t *testing.T) {
	a := newAuthority(t)
	token := NewToken(a.Fingerprint())
	if err := token.CheckAuthority(a.CertificatePEM()); err != nil {
		t.Error(err)
	}
	wantCode(t, token.CheckAuthority(newAuthority(t).CertificatePEM()), fleet.Denied)
	wantCode(t, token.CheckAuthority([]byte("x")), fleet.Invalid)
}
