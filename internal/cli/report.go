package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

// report prints why a command failed.
func (a *App) report(err error) {
	_, told := errors.AsType[*toldError](err)
	switch {
	case err == nil || told || errors.Is(err, context.Canceled): // who pressed Ctrl-C was told by the command
	case a.json:
		reportJSON(a.Err, err)
	default:
		reportText(a.Err, err)
	}
}

// reportText prints an error for a person: one line with operation, subject and
// cause, one line for each field or further line, the hint, and when to try
// again.
func reportText(w io.Writer, err error) {
	first, rest, _ := strings.Cut(plainWords(err), "\n")
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
	if after := fleet.RetryAfterOf(err); after > 0 {
		fmt.Fprintf(w, "retry: it may be possible in %s\n", roughly(after))
	}
}

// reportJSON prints an error for a program: as the API's message in one line.
func reportJSON(w io.Writer, err error) {
	e, ok := errors.AsType[*fleet.Error](err)
	if !ok {
		e = &fleet.Error{}
	}
	message := &godwitv1.ErrorDetail{
		Code: string(fleet.CodeOf(err)), Op: e.Op, Subject: e.Subject,
		Cause: strings.TrimPrefix(plainWords(err), strings.TrimSpace(e.Op+" "+e.Subject)+": "),
		Hint:  fleet.HintOf(err), RetryAfterMs: fleet.RetryAfterOf(err).Milliseconds(),
	}
	for _, field := range fieldsOf(err) {
		message.Fields = append(message.Fields, &godwitv1.FieldError{Path: field.Path, Problem: field.Problem})
	}
	if data, err := wire.CompactJSON(message); err == nil {
		fmt.Fprintf(w, "%s\n", data)
	}
}

// rpcStatus is how gRPC begins the text of an error of etcd.
var rpcStatus = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// plainWords gives the text of an error without what libraries say in the
// words of their code.
func plainWords(err error) string {
	text := rpcStatus.ReplaceAllString(err.Error(), "")
	late := context.DeadlineExceeded.Error()
	switch fleet.CodeOf(err) {
	case fleet.Deadline, fleet.Unavailable: // whose cause says so already
		text = strings.TrimSuffix(text, ": "+late)
	}
	text = strings.ReplaceAll(text, late, "it took too long")
	return strings.ReplaceAll(text, context.Canceled.Error(), "it was interrupted")
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

// sentence gives an error with all its fields in one line.
func sentence(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	text := strings.ReplaceAll(plainWords(err), "\n", "; ")
	for i, field := range fieldsOf(err) {
		separator := "; "
		if i == 0 {
			separator = ": "
		}
		text += separator + field.Path + ": " + field.Problem
	}
	return text
}

// recoded gives an error another code.
func recoded(code fleet.Code, err error) error {
	if e, ok := errors.AsType[*fleet.Error](err); ok {
		return &fleet.Error{Code: code, Hint: e.Hint, Err: err}
	}
	return err
}

// hinted adds a hint to an error that has none.
func hinted(err error, hint string) error {
	if e, ok := errors.AsType[*fleet.Error](err); ok && fleet.HintOf(err) == "" {
		return &fleet.Error{Code: e.Code, Hint: hint, Err: err}
	}
	return err
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
