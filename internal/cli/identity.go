package cli

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"godwit.dev/godwit/api/client"
	"godwit.dev/godwit/internal/agent"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/pki"
)

// memberIdentity gives the certificate in a folder of a member that the server
// enrols, after enrolling by a token if there is none yet.
func (a *App) memberIdentity(ctx context.Context, member pki.Identity, dir, token string, log *slog.Logger) (*pki.Keeper, error) {
	var c *client.Client // of any of the servers
	renew := agent.Renewal(func() *client.Client { return c })
	keeper, err := pki.OpenKeeper(dir, renew, log)
	if code := fleet.CodeOf(err); (code == fleet.NotFound || code == fleet.Denied) && token != "" {
		if err := agent.Enroll(ctx, a.server.Server, member, token, dir); err != nil {
			return nil, err
		}
		keeper, err = pki.OpenKeeper(dir, renew, log)
	}
	if fleet.CodeOf(err) == fleet.NotFound {
		return nil, &fleet.Error{
			Code: fleet.Denied, Op: "start", Subject: member.String(), Cause: "it has no certificate yet",
			Hint: fmt.Sprintf("on the server run: godwit %s token %s; then start this with --token", member.Kind, member.Name),
		}
	}
	if err != nil {
		return nil, err
	}
	if have := keeper.Identity(); have != member {
		return nil, invalidFlag("name", fmt.Sprintf("the certificate in %s is for %v, not %v", dir, have, member))
	}
	c, err = client.Dial(client.Config{Server: a.server.Server, TLS: keeper.ClientConfig(pki.Expect{Kind: pki.Server})})
	return keeper, err
}

// checkServerForMembers refuses the operators' socket as the server of a member
// that shows a certificate.
func (a *App) checkServerForMembers(subject string) error {
	if strings.Contains(a.server.Server, "unix:") {
		return &fleet.Error{
			Code: fleet.Invalid, Op: "use server", Subject: a.server.Server, Cause: "the socket is for operators, not for " + subject,
			Hint: "give the address for " + subject + ", also on the server's own machine: --server https://HOST:" + client.DefaultPort,
		}
	}
	return nil
}
