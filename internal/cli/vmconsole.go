package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"godwit.dev/godwit/api/client"
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

const (
	// leaveKey is Ctrl-], as of telnet and virsh.
	leaveKey = 0x1d
	// defaultHistory is about a screen.
	defaultHistory = 4 * fleet.KiB
	historyMax     = fleet.TiB
)

func newVMConsole(app *App) *cobra.Command {
	history := fleet.Bytes(defaultHistory)
	cmd := &cobra.Command{
		Use:   "console VM",
		Short: "Open a VM's serial console",
		Long: `Console shows what a VM says on its serial console and types there what comes
on standard input. It stays open when the VM moves to another host, and ends
with the VM. Several may be open at once.

On a terminal every key goes to the VM, Ctrl-C too; Ctrl-] leaves. Else standard
input is typed to its end, and the console shown until it is interrupted.`,
		Example: `  godwit vm console web1
  godwit vm console web1 --history 1MiB < /dev/null | tee boot.log
  echo uptime | timeout 5 godwit vm console web1 --history 0`,
		Args:              exactly("VM"),
		ValidArgsFunction: app.completeFirst(vmNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := app.call(cmd.Context(), 0, func(ctx context.Context, c *client.Client) error {
				return app.openConsole(ctx, c, &godwitv1.ConsoleRequest{Name: args[0], HistoryBytes: uint64(history)})
			})
			if errors.Is(err, context.Canceled) {
				return nil // to be interrupted is how it ends
			}
			return named("open console", "vm "+args[0], err)
		},
	}
	bytesFlag(cmd, &history, "history", 0, historyMax, "first show so much of what it has said before")
	return cmd
}

// openConsole shows and types until the VM has ended or the user leaves.
func (a *App) openConsole(ctx context.Context, c *client.Client, request *godwitv1.ConsoleRequest) error {
	raw, restore, err := a.rawInput()
	if err != nil {
		return err
	}
	defer restore()
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	if raw {
		fmt.Fprintf(a.Err, "console of %s; Ctrl-] leaves\r\n", request.GetName())
	}
	keys := &keys{vm: request.GetName(), client: c, raw: raw}
	go func() {
		if err := keys.typeAll(ctx, a.In); err != nil {
			leave(err)
		}
	}()
	err = keepWatching(ctx, false, func() (done, seen bool, err error) {
		return a.showConsole(ctx, c, request, raw)
	})
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// aside says something beside what the VM says.
func (a *App) aside(raw bool, text string) {
	end := "\n"
	if raw {
		end = "\r\n"
	}
	fmt.Fprint(a.Err, end, text, end)
}

// rawInput makes every key come at once, if standard input is a terminal.
func (a *App) rawInput() (raw bool, restore func(), err error) {
	file, ok := a.In.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return false, func() {}, nil
	}
	before, err := term.MakeRaw(int(file.Fd()))
	if err != nil {
		return false, nil, fmt.Errorf("take the keys of the terminal: %w", err)
	}
	return true, func() { _ = term.Restore(int(file.Fd()), before) }, nil
}

// showConsole shows one stream, and changes the request so that the next one goes
// on after it.
func (a *App) showConsole(ctx context.Context, c *client.Client, request *godwitv1.ConsoleRequest, raw bool) (done, seen bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.VM.Console(ctx, request)
	if err != nil {
		return false, false, err
	}
	defer stream.Close()
	defer cancel() // before Close, which else waits for the server
	for stream.Receive() {
		seen = true
		message := stream.Msg()
		if message.GetEnded() != "" {
			a.aside(raw, message.GetEnded())
			return true, true, nil
		}
		if moved := message.GetHost(); raw && moved != "" && request.GetEpoch() != 0 && request.GetEpoch() != message.GetEpoch() {
			a.aside(raw, fmt.Sprintf("[%s is on %s now]", request.GetName(), moved))
		}
		request.Epoch, request.Offset = message.GetEpoch(), message.GetOffset()
		if _, err := a.Out.Write(message.GetOutput()); err != nil {
			return false, true, err
		}
	}
	return false, seen, stream.Err()
}

// keys types on the console of a VM.
type keys struct {
	vm     string
	client *client.Client
	raw    bool // the leave key leaves
}

// typeAll types what it reads, to its end; context.Canceled if the user leaves.
func (k *keys) typeAll(ctx context.Context, in io.Reader) error {
	piece := make([]byte, wire.TypeMax)
	for {
		n, err := in.Read(piece)
		input, left := piece[:n], false
		if k.raw {
			input, _, left = bytes.Cut(input, []byte{leaveKey})
		}
		if len(input) > 0 {
			if _, err := k.client.VM.Type(ctx, &godwitv1.TypeRequest{Name: k.vm, Input: input}); err != nil {
				return err
			}
		}
		switch {
		case left:
			return context.Canceled
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the keys: %w", err)
		}
	}
}
