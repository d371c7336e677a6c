package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

type createFlags struct {
	file, host, request string
	stopped, noWait     bool
	example, dryRun     bool
	limit               time.Duration
}

func newVMCreate(app *App) *cobra.Command {
	var chosen createFlags
	cmd := &cobra.Command{
		Use:   "create -f FILE",
		Short: "Create a VM from a spec and start it",
		Long: `Create records the VM that a YAML file describes and, unless --stopped is given,
starts it: on the host that --host names, or else where it fits best. With
--dry-run it only says what would come of it.

Paths in the file that are not absolute count from the file's folder. Unknown
fields are errors; everything that is wrong is reported at once.` + waitHelp,
		Example: `  godwit vm create --example > web1.yaml
  godwit vm create -f web1.yaml --dry-run
  godwit vm create -f web1.yaml --host host-a
  godwit vm create -f - --stopped < web1.yaml`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case chosen.example:
				return app.printExample()
			case chosen.file == "":
				return misused(cmd, "no spec is given")
			case chosen.stopped && chosen.host != "":
				return misused(cmd, "--stopped and --host exclude each other: a VM that is left stopped has no host")
			}
			return app.createVM(cmd.Context(), chosen)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&chosen.file, "file", "f", "", "the spec's `file`; - reads standard input")
	flags.StringVar(&chosen.host, "host", "", "start it on this `host` (default: where it fits best)")
	flags.BoolVar(&chosen.stopped, "stopped", false, "leave it stopped")
	flags.BoolVar(&chosen.dryRun, "dry-run", false, "check everything, record nothing")
	flags.BoolVar(&chosen.example, "example", false, "print a spec with comments and do nothing; with --json, the API's request for it")
	requestFlag(cmd, &chosen.request)
	addTimeout(cmd, &chosen.limit)
	addNoWait(cmd, &chosen.noWait)
	app.completeFlag(cmd, "host", readyHosts)
	return cmd
}

func (a *App) printExample() error {
	if !a.json {
		_, err := io.WriteString(a.Out, specExample)
		return err
	}
	request, _ := parseSpec([]byte(specExample))
	return a.printOne(request, nil)
}

func (a *App) createVM(ctx context.Context, chosen createFlags) error {
	spec, err := a.readSpecFile(chosen.file)
	if err != nil {
		return err
	}
	if spec.document.unreadable() {
		return spec.invalid()
	}
	spec.request.Host, spec.request.Stopped, spec.request.ValidateOnly = chosen.host, chosen.stopped, chosen.dryRun
	spec.request.RequestId = chosen.request
	create := order{op: "create", done: runs, told: spec.create}
	return a.call(ctx, chosen.limit, func(ctx context.Context, c *client.Client) error {
		name := spec.request.GetName()
		if !chosen.dryRun {
			return a.give(ctx, c, create, name, chosen.noWait || chosen.stopped)
		}
		vm, err := spec.create(ctx, c)
		if err != nil {
			return named("create", "vm "+name, err)
		}
		return a.printOne(vm, wouldLine(vm))
	})
}

// wouldLine tells what would come of a VM's creation.
func wouldLine(vm *godwitv1.VM) func(io.Writer) {
	return func(w io.Writer) {
		then := "left stopped"
		if host := vm.GetOwner().GetHost(); host != "" {
			then = "started on " + host
		}
		fmt.Fprintf(w, "vm %s would be created and %s\n", vm.GetName(), then)
	}
}
