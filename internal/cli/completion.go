package cli

import (
	"context"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// completeLimit is how long a Tab may take; a slow server completes nothing.
const completeLimit = 2 * time.Second

// bashWords stands in for a function of the package bash-completion, which the
// script needs and not every machine has: it gives the words up to the cursor,
// where = and : do not part them.
const bashWords = `if ! declare -F _get_comp_words_by_ref >/dev/null; then
    _get_comp_words_by_ref() {
        local i glue=
        words=()
        for ((i = 0; i <= COMP_CWORD; i++)); do
            if [[ $i -gt 0 && ( -n $glue || ${COMP_WORDS[i]} == [=:]* ) ]]; then
                words[${#words[@]}-1]+=${COMP_WORDS[i]}
            else
                words+=("${COMP_WORDS[i]}")
            fi
            glue=
            [[ ${COMP_WORDS[i]} == *[=:] ]] && glue=1
        done
        cword=$((${#words[@]} - 1))
        cur=${words[cword]}
        prev=
        ((cword == 0)) || prev=${words[cword-1]}
    }
fi
`

func newCompletionCommand(app *App) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the completion script of a shell",
		Long: `Completion prints a script that makes the shell complete commands and flags,
and the names of VMs, hosts, networks and migrations by asking the server.`,
		Example: `  source <(godwit completion bash)
  godwit completion zsh > "${fpath[1]}/_godwit"
  godwit completion fish > ~/.config/fish/completions/godwit.fish`,
		Args:      exactly("SHELL"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				if _, err := io.WriteString(app.Out, bashWords); err != nil {
					return err
				}
				return cmd.Root().GenBashCompletionV2(app.Out, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(app.Out)
			case "fish":
				return cmd.Root().GenFishCompletion(app.Out, true)
			}
			return misused(cmd, args[0]+" is none of bash, zsh and fish")
		},
	}
}

// completeFirst completes the first argument; nil completes nothing.
func (a *App) completeFirst(known names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 || known == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.ask(cmd.Context(), known)
	}
}

// completeFlag completes the values of a flag that the command has.
func (a *App) completeFlag(cmd *cobra.Command, flag string, known names) {
	a.completeFlagFor(cmd, flag, func([]string) names { return known })
}

// completeFlagFor completes a flag whose values depend on the arguments.
func (a *App) completeFlagFor(cmd *cobra.Command, flag string, known func(args []string) names) {
	err := cmd.RegisterFlagCompletionFunc(flag,
		func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return a.ask(cmd.Context(), known(args))
		})
	if err != nil {
		panic(err) // the command has no such flag, or this is its second call
	}
}

// ask gives no names when the server cannot be asked: a shell has no place to
// show an error.
func (a *App) ask(ctx context.Context, known names) ([]cobra.Completion, cobra.ShellCompDirective) {
	var found []string
	err := a.call(ctx, completeLimit, func(ctx context.Context, c *client.Client) (err error) {
		found, err = known(ctx, c)
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

func vmNames(ctx context.Context, c *client.Client) ([]string, error) {
	return each(c.VMs(ctx, ""), (*godwitv1.VM).GetName)
}

func hostNames(ctx context.Context, c *client.Client) ([]string, error) {
	return each(c.Hosts(ctx), (*godwitv1.Host).GetName)
}

// readyHosts leaves out the hosts that take no VM at present.
func readyHosts(ctx context.Context, c *client.Client) ([]string, error) {
	hosts, err := collect(c.Hosts(ctx))
	return readyBut("", hosts), err
}

// targetsFor lists where the VM that is named can go: nowhere it is already.
func targetsFor(args []string) names {
	return func(ctx context.Context, c *client.Client) ([]string, error) {
		host := ""
		if len(args) > 0 {
			if response, err := c.VM.Get(ctx, &godwitv1.GetVMRequest{Name: args[0]}); err == nil {
				host = response.GetVm().GetOwner().GetHost()
			}
		}
		hosts, err := collect(c.Hosts(ctx))
		return readyBut(host, hosts), err
	}
}

func readyBut(host string, hosts []*godwitv1.Host) (names []string) {
	for _, h := range hosts {
		if h.GetState() == "up" && h.GetName() != host {
			names = append(names, h.GetName())
		}
	}
	return names
}

func networkNames(ctx context.Context, c *client.Client) ([]string, error) {
	return each(c.Networks(ctx), (*godwitv1.Network).GetName)
}

// bridgeNames describes each bridge by the hosts that have it.
func bridgeNames(ctx context.Context, c *client.Client) ([]string, error) {
	hosts, err := collect(c.Hosts(ctx))
	having := map[string][]string{}
	for _, host := range hosts {
		for _, bridge := range host.GetNetworks().GetBridges() {
			having[bridge.GetName()] = append(having[bridge.GetName()], host.GetName())
		}
	}
	var found []string
	for _, bridge := range slices.Sorted(maps.Keys(having)) {
		found = append(found, cobra.CompletionWithDesc(bridge, "on "+strings.Join(having[bridge], ", ")))
	}
	return found, err
}

// migrationIDs describes each id by what the migration does.
func migrationIDs(ctx context.Context, c *client.Client) ([]string, error) {
	return each(c.Migrations(ctx, ""), func(m *godwitv1.Migration) string {
		return cobra.CompletionWithDesc(m.GetId(), m.GetVm()+" to "+m.GetTarget()+", "+m.GetState())
	})
}

func each[T any](list iter.Seq2[T, error], name func(T) string) ([]string, error) {
	var found []string
	for item, err := range list {
		if err != nil {
			return nil, err
		}
		found = append(found, name(item))
	}
	return found, nil
}
