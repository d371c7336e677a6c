package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/internal/demo"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/image"
	"godwit.dev/godwit/internal/lab/probe"
	"godwit.dev/godwit/internal/lab/witness"
)

const demoHelp = `Demo runs a whole fleet on this machine, as root: a server, three agents and a
client, each in a network namespace of its own. It boots a small Linux VM, lets
the client talk to it without a pause, migrates it there and back, and shows for
each hand-over where the time went and what the client noticed of it. At the end
everything is removed, also after Ctrl-C.

The client's longest time without an answer is longer than the blackout: without
KVM the target's QEMU begins with a cold cache of translated code, and the
client's clock counts until answers flow again. The phase "device" of a blackout
holds the devices' state and what of the memory QEMU sends with it, up to 20 ms
worth.

It fails, with exit code 1, if a migration does not end as it should or if the
client loses or gets twice a single packet. With --json it prints one object at
the end, also when it fails: then with "error" in it.

It needs QEMU and the guest image that "make setup" builds in the source tree.`

// Bounds of what the demo's hosts and guest can do.
const (
	minDemoMemory = 96 * fleet.MiB
	maxDemoMemory = 8 * fleet.GiB
	maxMigrations = 1000
	fullFrame     = 1472 // bytes of UDP payload
)

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
  godwit demo --json | jq '.migrations[].blackout_ms'
  godwit demo --keep`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if flags.remove != "" {
				return app.removeLab(cmd.Context(), flags.remove)
			}
			return app.demo(cmd.Context(), flags)
		},
	}
	f := cmd.Flags()
	c.Migrations, c.Ports, c.Traffic.Rate, c.Traffic.Size = 2, 1, probe.DefaultRate, probe.DefaultSize
	intFlag(cmd, &c.Migrations, "migrations", 0, maxMigrations, "how many times the VM is moved, to h2 and back to h1 in turn")
	intFlag(cmd, &c.Traffic.Rate, "rate", 1, probe.MaxRate, "UDP packets that the client sends in a second, to each port")
	intFlag(cmd, &c.Traffic.Size, "size", probe.MinSize, fullFrame, "bytes of payload in each; 1472 fills a frame")
	intFlag(cmd, &c.Ports, "ports", 1, 2, "ports of the VM, 1 or 2")
	bytesFlag(cmd, &c.Memory, "memory", minDemoMemory, maxDemoMemory, "memory of the VM, such as 512MiB")
	intFlag(cmd, &c.DirtyMiB, "dirty", 0, witness.MaxLoadRate>>20, "MiB of memory that the guest writes in a second (default 0)")
	f.BoolVar(&c.Cancel, "cancel", false, "after them, begin one more and cancel it in its hand-over, while the VM is paused")
	f.BoolVar(&c.Keep, "keep", false, "leave the fleet running at the end, and say how to use it and how to remove it")
	f.StringVar(&c.Name, "name", "", "`name` of the lab, 1 to 16 small letters and digits (default: made up)")
	f.StringVar(&flags.remove, "remove", "", "only remove the lab of this `name`, left by --keep")
	f.StringVar(&flags.image, "image", "", "`folder` made by make setup, normally .cache of the source tree ("+image.CacheEnv+")")
	f.StringVar(&flags.out, "out", "", "also write the JSON to this `file`")
	return cmd
}

func (f *demoFlags) check() error {
	if f.config.Memory%fleet.MiB != 0 {
		return invalidFlag("memory", "the guest needs a whole number of MiB")
	}
	if !labName.MatchString(f.config.Name) {
		return invalidFlag("name", fmt.Sprintf("%q is not 1 to 16 small letters and digits", f.config.Name))
	}
	return nil
}

var labName = regexp.MustCompile(`^[a-z0-9]{0,16}$`) // none: it is made up

// demo runs the demo and prints or writes its report, whatever comes of it.
func (a *App) demo(ctx context.Context, flags demoFlags) error {
	out, err := createOut(flags.out)
	if err != nil {
		return errors.Join(err, a.printReport(nil, demo.Report{Migrations: []demo.Migration{}}, err))
	}
	report, err := a.runDemo(ctx, flags)
	if ctx.Err() != nil {
		err = context.Canceled
	}
	if printErr := a.printReport(out, report, err); err == nil {
		err = printErr
	}
	return err
}

// createOut makes the file that the report is to go to, nil for "".
func createOut(path string) (io.WriteCloser, error) {
	if path == "" {
		return nil, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, badFolder("out", filepath.Dir(path), err)
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, badFolder("out", path, err)
	}
	return file, nil
}

func (a *App) runDemo(ctx context.Context, flags demoFlags) (report demo.Report, err error) {
	report.Migrations = []demo.Migration{}
	if err := flags.check(); err != nil {
		return report, err
	}
	c := flags.config
	if c.Image, err = guestImage(flags.image); err != nil {
		return report, err
	}
	if c.Binary, err = os.Executable(); err != nil {
		return report, fmt.Errorf("find this program: %w", err)
	}
	c.Progress, c.Paint = a.Out, a.style().paint
	if a.json {
		c.Progress, c.Paint = a.Err, nil
	}
	return demo.Run(ctx, c)
}

// guestImage finds the guest where the flag says, or else where make setup puts
// it.
func guestImage(flag string) (image.Image, error) {
	if flag == "" {
		found, err := image.Locate()
		return found, recoded(fleet.Unsupported, err)
	}
	found, err := image.Load(flag)
	return found, recoded(fleet.Invalid, err)
}

// printReport writes the report to the file, if there is one, and prints it
// with --json.
func (a *App) printReport(out io.WriteCloser, report demo.Report, failed error) error {
	if failed != nil {
		report.Error = sentence(failed)
	}
	text, err := json.Marshal(report)
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if out != nil {
		_, err = out.Write(text)
		err = errors.Join(err, out.Close())
	}
	if a.json {
		_, printErr := a.Out.Write(text)
		err = errors.Join(err, printErr)
	}
	return err
}

func (a *App) removeLab(ctx context.Context, name string) error {
	if err := lab.Remove(ctx, name); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]string{"removed": name})
	}
	return a.printText(func(w io.Writer) { fmt.Fprintf(w, "lab %s removed\n", name) })
}
