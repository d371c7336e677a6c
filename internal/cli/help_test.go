package cli

import (
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// silentApp reads nothing and prints nothing.
func silentApp() *App {
	return &App{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard, Getenv: func(string) string { return "" }}
}

// TestHelpIsComplete demands of every command a line, a text and an example,
// and of every flag a usage.
func TestHelpIsComplete(t *testing.T) {
	commands := 0
	var check func(*cobra.Command)
	check = func(cmd *cobra.Command) {
		commands++
		if cmd.Short == "" || cmd.Long == "" || !strings.HasPrefix(cmd.Example, "  godwit ") && !strings.Contains(cmd.Example, "<(godwit ") {
			t.Errorf("%s: line %q, text of %d characters, example %q", cmd.CommandPath(), cmd.Short, len(cmd.Long), cmd.Example)
		}
		cmd.LocalFlags().VisitAll(func(flag *pflag.Flag) {
			if flag.Usage == "" || flag.Name != strings.ToLower(flag.Name) {
				t.Errorf("%s --%s: usage %q", cmd.CommandPath(), flag.Name, flag.Usage)
			}
		})
		for line := range strings.Lines(cmd.Long) {
			if len(strings.TrimSuffix(line, "\n")) > 80 {
				t.Errorf("%s: a line of %d columns: %s", cmd.CommandPath(), len(line), line)
			}
		}
		for _, child := range cmd.Commands() {
			check(child)
		}
	}
	check(newRoot(silentApp()))
	if commands < 25 {
		t.Errorf("only %d commands", commands)
	}
}
