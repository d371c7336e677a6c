package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/pki"
)

// tokenCommand is what tells the commands apart that make tokens.
type tokenCommand struct {
	kind                      pki.Kind
	use, short, long, example string
	known                     names // nil completes nothing
}

func newTokenCommand(app *App, of tokenCommand) *cobra.Command {
	valid := time.Hour
	var request string
	cmd := app.callCommand(of.use, of.short, of.long, of.example, of.known,
		func(ctx context.Context, c *client.Client, name string) error {
			response, err := c.Host.CreateToken(ctx, &godwitv1.CreateTokenRequest{
				Kind: string(of.kind), Host: name, ValidSeconds: int64(valid / time.Second), RequestId: request,
			})
			member := pki.Identity{Kind: of.kind, Name: name}
			if err != nil {
				return named("make token for", member.String(), err)
			}
			if err := app.printOne(response, func(w io.Writer) { fmt.Fprintln(w, response.GetToken()) }); err != nil {
				return err
			}
			_, err = fmt.Fprintf(app.Err, "good once, for %v, until %s\n", member,
				response.GetExpires().AsTime().Local().Format("2006-01-02 15:04:05 MST"))
			return err
		})
	durationFlag(cmd, &valid, "valid", time.Second, 720*time.Hour, "how long it can be used")
	requestFlag(cmd, &request)
	return cmd
}
