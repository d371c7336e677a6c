package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"godwit.dev/godwit/internal/fleet"
)

// The exit codes; `godwit help exit-codes` documents them, so they never
// change their meaning.
const (
	exitOK            = 0
	exitFailed        = 1
	exitInvalid       = 2
	exitNotFound      = 3
	exitRefused       = 4
	exitUnavailable   = 5
	exitAborted       = 6
	exitNeedsOperator = 7
	exitInterrupted   = 130 // 128 + SIGINT, as shells have it
)

const exitCodesHelp = `Every command ends with one of these exit codes:

    0  it was done
    1  it failed: an outside program, a limit, what this machine lacks, or a
       fault in Godwit itself
    2  the command line or the spec is invalid: it can never succeed as it is
    3  the named VM, host, network, migration or lab does not exist
    4  refused: the present state forbids it, it exists already, no host fits,
       or the caller may not do it
    5  the server cannot be reached or did not answer in time: try again
    6  the migration ended aborted; the VM runs on at its source
       (godwit migrate --watch or --wait, godwit migration watch)
    7  the migration needs an operator; the commands that help were printed
       (godwit migrate --watch or --wait, godwit migration watch)
  130  interrupted by Ctrl-C; what the server was asked to do goes on`

func newExitCodesTopic(*App) *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "The exit codes that scripts can rely on",
		Long:  exitCodesHelp,
	}
}

// endedError is a migration's bad end, which has an exit code of its own.
type endedError struct {
	code int
	err  *fleet.Error
}

func (e *endedError) Error() string { return e.err.Error() }
func (e *endedError) Unwrap() error { return e.err }

// exitCode gives the exit code for what a command returned.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if ended, ok := errors.AsType[*endedError](err); ok {
		return ended.code
	}
	if errors.Is(err, context.Canceled) {
		return exitInterrupted
	}
	switch fleet.CodeOf(err) {
	case fleet.Invalid:
		return exitInvalid
	case fleet.NotFound:
		return exitNotFound
	case fleet.Exists, fleet.Conflict, fleet.NoFit, fleet.Denied:
		return exitRefused
	case fleet.Unavailable, fleet.Deadline:
		return exitUnavailable
	}
	return exitFailed
}
