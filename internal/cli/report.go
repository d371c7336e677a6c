package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// report prints an error for a person: one line with operation, subject and
// cause, one line for each field or further line, and the hint.
func report(w io.Writer, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return // who pressed Ctrl-C was told by the command
	}
	first, rest, _ := strings.Cut(err.Error(), "\n")
	fmt.Fprintf(w, "godwit: %s\n", first)
	for line := range strings.Lines(rest) {
		fmt.Fprintf(w, "  %s\n", strings.TrimSpace(line))
	}
	for _, field := range fieldsOf(err) {
		fmt.Fprintf(w, "  %s: %s\n", field.Path, field.Problem)
	}
	if hint := fleet.HintOf(err); hint != "" {
		fmt.Fprintf(w, "hint: %s\n", hint)
	}
}

// fieldsOf gives the fields of every *fleet.Error in the chain.
func fieldsOf(err error) []fleet.FieldError {
	var fields []fleet.FieldError
	for {
		e, ok := errors.AsType[*fleet.Error](err)
		if !ok {
			return fields
		}
		fields = append(fields, e.Fields...)
		err = e.Err
	}
}

// named adds what was attempted on what to an error that does not say it
// itself, such as that of a server that cannot be reached.
func named(op, subject string, err error) error {
	e, ok := errors.AsType[*fleet.Error](err)
	if !ok || e.Op != "" {
		return err
	}
	return &fleet.Error{Code: e.Code, Op: op, Subject: subject, Err: err}
}
