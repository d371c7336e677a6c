package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

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

// exitMeanings is what the help topic and its JSON say.
var exitMeanings = [...]struct {
	Code    int    `json:"code"`
	Meaning string `json:"meaning"`
}{
	{exitOK, "it was done"},
	{exitFailed, "it failed: an outside program, a limit, what this machine lacks, or a fault in Godwit itself"},
	{exitInvalid, "the command line or the spec is invalid: it can never succeed as it is"},
	{exitNotFound, "the named VM, host, network, volume, migration or lab does not exist"},
	{exitRefused, "refused: the present state forbids it, it exists already, no host fits, or the caller may not do it"},
	{exitUnavailable, "the server cannot be reached or did not answer in time, or the VM did not get there in time: try again"},
	{exitAborted, "the migration ended aborted; the VM is at its source (godwit migrate --watch or --wait, godwit migration watch)"},
	{exitNeedsOperator, "the migration needs an operator; the commands that help were printed (as with 6)"},
	{exitInterrupted, "interrupted by Ctrl-C; what the server was asked to do goes on"},
}

func exitCodesHelp() string {
	const columns, indent = 78, "       "
	text := "Every command ends with one of these exit codes:\n"
	for _, one := range exitMeanings {
		line := fmt.Sprintf("\n  %3d  ", one.Code)
		for i, word := range strings.Fields(one.Meaning) {
			if len(line)+len(word) > columns {
				text, line = text+strings.TrimRight(line, " "), "\n"+indent
			} else if i > 0 {
				line += " "
			}
			line += word
		}
		text += line
	}
	return text
}

// newExitCodesTopic is a help topic that programs can read with --json.
func newExitCodesTopic(app *App) *cobra.Command {
	return &cobra.Command{
		Use:     "exit-codes",
		Short:   "The exit codes that scripts can rely on",
		Long:    exitCodesHelp(),
		Example: "  godwit exit-codes --json | jq '.exitCodes[].code'",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if app.json {
				return app.printJSON(map[string]any{"exitCodes": exitMeanings})
			}
			_, err := fmt.Fprintln(app.Out, exitCodesHelp())
			return err
		},
	}
}

// endedError is a migration's bad end, which has an exit code of its own.
type endedError struct {
	code int
	err  *fleet.Error
}

func (e *endedError) Error() string { return e.err.Error() }
func (e *endedError) Unwrap() error { return e.err }

// toldError is the end of a process that has said why itself.
type toldError struct{ code int }

func (e *toldError) Error() string { return fmt.Sprintf("it ended with exit code %d", e.code) }

// exitCode gives the exit code for what a command returned.
func exitCode(err error) int {
	if err == nil {
		return exitOK
	}
	if ended, ok := errors.AsType[*endedError](err); ok {
		return ended.code
	}
	if told, ok := errors.AsType[*toldError](err); ok {
		return told.code
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
