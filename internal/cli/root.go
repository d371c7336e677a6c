package cli

import (
	"context"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	"godwit.dev/godwit/internal/fleet"
)

// constructor builds one command and what is below it.
type constructor func(*App) *cobra.Command

// constructors gives the commands in the order of the help text.
func constructors() []constructor {
	return []constructor{
		newServerCommand,
		newAgentCommand,
		newDemoCommand,
		newSimCommand,
		newMigrateCommand,
		newVMCommand,
		newHostCommand,
		newNetworkCommand,
		newVolumeCommand,
		newMigrationCommand,
		newForecastCommand,
		newVersionCommand,
		newCompletionCommand,
		newExitCodesTopic,
	}
}

const rootHelp = `Godwit moves running virtual machines between Linux hosts: the guest keeps
computing, its connections stay open, and no packet is lost.

One program is everything: the server that decides, the agent that runs on each
host, and the commands that tell the server what is wanted. They find it by
--server; on the server's own machine nothing has to be given.

With --json a command prints one JSON value, or one a line while it watches. Its
objects are those of the API, so amounts and other 64-bit numbers are strings.
Errors and hints go to standard error, with --json as one line of JSON; godwit
help exit-codes lists the codes.`

// Main runs the command line and gives its exit code. Interrupt and terminate
// signals end the context of the command; a second one ends the process.
func Main(ctx context.Context, app *App, args []string) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	root := newRoot(app)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	app.report(err)
	return exitCode(err)
}

func newRoot(app *App) *cobra.Command {
	root := &cobra.Command{
		Use:   "godwit",
		Short: "Managed live migration of QEMU virtual machines",
		Long:  rootHelp,
		Example: `  godwit server --name control.example.com
  godwit vm create -f web1.yaml
  godwit migrate web1 --watch`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          helpOrUnknown,
		Args:          cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Name() == "server" {
				return nil // it says for each flag what is to be in it
			}
			return checkNoneEmpty(cmd)
		},
	}
	root.SetIn(app.In)
	root.SetOut(app.Out)
	root.SetErr(app.Err)
	root.CompletionOptions.DisableDefaultCmd = true
	root.Version, _ = build()
	root.SetVersionTemplate("godwit {{.Version}}\n")
	root.SetFlagErrorFunc(badFlag)

	flags := root.PersistentFlags()
	app.server.Server = app.env("GODWIT_SERVER", client.DefaultServer)
	flags.Var(&addressList{to: &app.server.Server}, "server",
		"the server's `address`: unix:///path or https://host:port; several with commas (GODWIT_SERVER)")
	flags.StringVar(&app.server.CAFile, "ca", app.env("GODWIT_CA", ""),
		"`file` with the certificate of the server's authority (GODWIT_CA)")
	flags.StringVar(&app.server.CertFile, "cert", app.env("GODWIT_CERT", ""),
		"`file` with the caller's certificate (GODWIT_CERT)")
	flags.StringVar(&app.server.KeyFile, "key", app.env("GODWIT_KEY", ""),
		"`file` with the caller's key (GODWIT_KEY)")
	flags.BoolVar(&app.json, "json", false, "print JSON")
	flags.BoolVar(&app.noColor, "no-color", false, "print no colours (NO_COLOR)")

	for _, construct := range constructors() {
		root.AddCommand(construct(app))
	}
	root.SetHelpCommand(newHelpCommand())
	return root
}

// group builds a command that only holds others.
func group(use, short, long, example string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Example: example, RunE: helpOrUnknown, Args: cobra.ArbitraryArgs}
	cmd.AddCommand(children...)
	return cmd
}

// newHelpCommand is like cobra's own, except that it refuses a command that
// does not exist.
func newHelpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Explain a command",
		Long:    "Help prints what a command does, its flags and examples.",
		Example: "  godwit help vm create\n  godwit help exit-codes",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
			if about, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
				for _, child := range about.Commands() {
					names = append(names, cobra.CompletionWithDesc(child.Name(), child.Short))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				return helpOrUnknown(about, rest)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

func helpOrUnknown(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	hint := "`" + cmd.CommandPath() + " --help` lists what there is"
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean `" + cmd.CommandPath() + " " + near[0] + "`?"
	}
	return &fleet.Error{
		Code:  fleet.Invalid,
		Cause: "there is no command `" + cmd.CommandPath() + " " + args[0] + "`",
		Hint:  hint,
	}
}

// misused says what is wrong with a command line.
func misused(cmd *cobra.Command, problem string) error {
	return &fleet.Error{
		Code:  fleet.Invalid,
		Op:    strings.TrimPrefix(cmd.CommandPath(), "godwit "),
		Cause: problem,
		Hint:  "usage: " + strings.TrimSuffix(cmd.UseLine(), " [flags]") + "; --help says more",
	}
}

// exactly demands the named arguments, for example exactly("NETWORK", "NAME").
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return misused(cmd, "the argument "+names[len(args)]+" is missing")
		case len(args) > len(names):
			return misused(cmd, "there is an argument too many: "+args[len(names)])
		}
		for i, name := range names {
			if args[i] == "" {
				return misused(cmd, "the argument "+name+" is empty")
			}
		}
		return nil
	}
}

// atMost allows the named argument to be left out.
func atMost(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return exactly(name)(cmd, args)
	}
}
