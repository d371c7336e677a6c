package cli_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"godwit.dev/godwit/internal/cli"
)

// noRaceSleep, as GORACE, keeps the race detector from sleeping a second at the
// end of every process.
const noRaceSleep = "atexit_sleep_ms=0"

var rewrite = flag.Bool("rewrite", false, "write the expected outputs of the scripts anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"godwit": func() {
		app := cli.OS()
		var looks atomic.Int64
		// Two looks at the clock are 400 ms apart, however fast the machine is.
		app.Now = func() time.Time { return present.Add(time.Duration(looks.Add(1)) * 400 * time.Millisecond) }
		os.Exit(cli.Main(context.Background(), app, os.Args[1:]))
	}})
}

// TestScripts runs the program as a process of its own against a fake server.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		Setup:               serveFake,
		UpdateScripts:       *rewrite,
		RequireExplicitExec: true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a command and demands an exit code: exits CODE COMMAND ARGUMENTS.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARGUMENTS")
	}
	err := ts.Exec(args[1], args[2:]...)
	if got := codeOf(err); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

func codeOf(err error) string {
	if err == nil {
		return "0"
	}
	if ended, ok := errors.AsType[*exec.ExitError](err); ok {
		return strconv.Itoa(ended.ExitCode())
	}
	return err.Error()
}
