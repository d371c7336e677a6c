package agent

import (
	"context"
	"encoding/pem"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/pki"
)

// Enroll spends a token for the first certificate of a member, a host or a
// volume server, and saves it in dir. The server proves by the token's
// fingerprint that it is of the right fleet.
func Enroll(ctx context.Context, server string, member pki.Identity, tokenText, dir string) error {
	token, err := pki.ParseToken(tokenText)
	if err != nil {
		return err
	}
	key, request, err := pki.NewKeyAndRequest(member.Name)
	if err != nil {
		return err
	}
	c, err := client.Dial(client.Config{Server: server, TLS: token.ClientConfig()})
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.Enroll.Enroll(ctx, &godwitv1.EnrollRequest{
		Kind: string(member.Kind), Host: member.Name, Token: token.Text(), CertificateRequest: derOf(request),
	})
	if err != nil {
		return err
	}
	authority := certificatePEM(answer.GetAuthority())
	if err := token.CheckAuthority(authority); err != nil {
		return err
	}
	return pki.Credentials{Certificate: certificatePEM(answer.GetCertificate()), Key: key, Authority: authority}.Save(dir)
}

// Renewal gives what a Keeper calls to renew its certificate. dial
// gives the client of the server; it is called for every renewal, because the
// client needs the Keeper first.
func Renewal(dial func() *client.Client) pki.Renew {
	return func(ctx context.Context, request []byte) (cert, authority []byte, err error) {
		answer, err := dial().Enroll.Renew(ctx, &godwitv1.RenewRequest{CertificateRequest: derOf(request)})
		if err != nil {
			return nil, nil, err
		}
		return certificatePEM(answer.GetCertificate()), certificatePEM(answer.GetAuthority()), nil
	}
}

func derOf(text []byte) []byte {
	block, _ := pem.Decode(text)
	return block.Bytes
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
