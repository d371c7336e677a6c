package cli

import (
	"context"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
)

// callLimit is how long a command waits for an answer unless --timeout says
// otherwise.
const (
	callLimit    = time.Minute
	maxCallLimit = 24 * time.Hour
)

func addTimeout(cmd *cobra.Command, limit *time.Duration) {
	*limit = callLimit
	durationFlag(cmd, limit, "timeout", time.Millisecond, maxCallLimit, "how long to wait for the server's answer")
}

// names lists what can be named, for the shell to complete.
type names func(context.Context, *client.Client) ([]string, error)

// callCommand builds a command that makes calls about one named thing. The
// argument's name is the last word of use.
func (a *App) callCommand(
	use, short, long, example string, known names,
	do func(context.Context, *client.Client, string) error,
) *cobra.Command {
	var limit time.Duration
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args:              exactly(use[strings.LastIndex(use, " ")+1:]),
		ValidArgsFunction: a.completeFirst(known),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), limit, func(ctx context.Context, c *client.Client) error {
				return do(ctx, c, args[0])
			})
		},
	}
	addTimeout(cmd, &limit)
	return cmd
}

// collect gives all items of a paged list, or the error that ended it.
func collect[T any](list iter.Seq2[T, error]) ([]T, error) {
	var items []T
	for item, err := range list {
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

// printDeleted says that something is gone.
func (a *App) printDeleted(kind, name string) error {
	if a.json {
		return a.printJSON(map[string]string{"deleted": name})
	}
	return a.printText(func(w io.Writer) { fmt.Fprintf(w, "%s %s deleted\n", kind, name) })
}
