package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/internal/demo"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/probe"
)

const demoHelp = `Demo runs a whole fleet on this machine, as root: a server, three agents and a
client, each in a network namespace of its own. It boots a small Linux VM, lets
the client talk to it without a pause, migrates it there and back, and shows for
each hand-over where the time went and what the client noticed of it. At the end
everything is removed, also after Ctrl-C.

It needs QEMU and the guest image that "make setup" builds in the source tree.`

// demoFlags are the flags of godwit demo.
type demoFlags struct {
	config demo.Config
	image  string
	out    string
	remove string
}

func newDemoCommand(app *App) *cobra.Command {
	flags := demoFlags{config: demo.Config{Memory: 256 * fleet.MiB}}
	c := &flags.config
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a fleet on this machine and migrate a VM there and back",
		Long:  demoHelp,
		Example: `  godwit demo
  godwit demo --migrations 20 --rate 5000
  godwit demo --ports 2 --size 1472 --cancel
  godwit demo --keep`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flags.remove != "" {
				return lab.Remove(cmd.Context(), flags.remove)
			}
			return app.demo(cmd.Context(), flags)
		},
	}
	f := cmd.Flags()
	f.IntVar(&c.Migrations, "migrations", 2, "how `many` migrations")
	f.IntVar(&c.Traffic.Rate, "rate", probe.DefaultRate, "UDP `packets` that the client sends in a second, to each port")
	f.IntVar(&c.Traffic.Size, "size", probe.DefaultSize, "`bytes` of payload in each; 1472 fills a frame")
	f.IntVar(&c.Ports, "ports", 1, "`ports` of the VM, 1 or 2")
	f.TextVar(&c.Memory, "memory", c.Memory, "`amount` of memory of the VM")
	f.IntVar(&c.DirtyMiB, "dirty", 0, "`MiB` of memory that the guest writes in a second")
	f.BoolVar(&c.Cancel, "cancel", false, "cancel one more hand-over while the VM is paused")
	f.BoolVar(&c.Keep, "keep", false, "leave the fleet running and say how to use it")
	f.StringVar(&c.Name, "name", "", "`name` of the lab (default: made up)")
	f.StringVar(&flags.remove, "remove", "", "only remove the lab of this `name`, left by --keep")
	f.StringVar(&flags.image, "image", "", "`folder` made by make setup, normally .cache of the source tree ("+image.CacheEnv+")")
	f.StringVar(&flags.out, "out", "", "also write the JSON to this `file`")
	return cmd
}

func (f *demoFlags) check() error {
	c := f.config
	switch {
	case c.Migrations < 0 || c.Migrations > 1000:
		return invalidFlag("migrations", fmt.Sprintf("%d is not within 0..1000", c.Migrations))
	case c.Ports < 1 || c.Ports > 2:
		return invalidFlag("ports", fmt.Sprintf("%d is not 1 or 2", c.Ports))
	case c.Traffic.Rate < 1 || c.Traffic.Rate > probe.MaxRate:
		return invalidFlag("rate", fmt.Sprintf("%d is not within 1..%d", c.Traffic.Rate, probe.MaxRate))
	case c.Traffic.Size < probe.MinSize || c.Traffic.Size > 1472:
		return invalidFlag("size", fmt.Sprintf("%d is not within %d..1472", c.Traffic.Size, probe.MinSize))
	case c.Memory < 96*fleet.MiB || c.Memory%fleet.MiB != 0:
		return invalidFlag("memory", "the guest needs a whole number of MiB, at least 96MiB")
	}
	return nil
}

func (a *App) demo(ctx context.Context, flags demoFlags) (err error) {
	if err := flags.check(); err != nil {
		return err
	}
	c := flags.config
	if flags.image != "" {
		c.Image, err = image.Load(flags.image)
	} else {
		c.Image, err = image.Locate()
	}
	if err != nil {
		return err
	}
	if c.Binary, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	c.Progress, c.Paint = a.Out, a.style().paint
	if a.json {
		c.Progress, c.Paint = a.Err, nil
	}
	report, err := demo.Run(ctx, c)
	if errors.Is(err, context.Canceled) || ctx.Err() != nil {
		return context.Canceled
	}
	if err != nil {
		return err
	}
	text, err := json.Marshal(report)
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if flags.out != "" {
		if err := os.MkdirAll(filepath.Dir(flags.out), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(flags.out, text, 0o644); err != nil {
			return err
		}
	}
	if a.json {
		_, err = a.Out.Write(text)
	}
	return err
}
