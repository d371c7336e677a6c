package fleet

import (
	"errors"
	"strings"
	"time"
)

// Code classes an error for whoever has to act on it. The set is closed and
// its values cross the wire, so a value is never renamed or used again.
type Code string

// The codes.
const (
	// Invalid: the request can never succeed as it is.
	Invalid Code = "invalid"
	// NotFound: the named thing does not exist.
	NotFound Code = "not-found"
	// Exists: something of that name exists already.
	Exists Code = "exists"
	// Conflict: the present state forbids it; it may succeed later.
	Conflict Code = "conflict"
	// NoFit: no host can take the VM; the error says why for each.
	NoFit Code = "no-fit"
	// Denied: the caller's certificate or token does not allow it.
	Denied Code = "denied"
	// Unavailable: something needed cannot be reached; retry.
	Unavailable Code = "unavailable"
	// Exhausted: a disk, table or quota is full.
	Exhausted Code = "exhausted"
	// Unsupported: this host or QEMU lacks a feature; the hint says what has it.
	Unsupported Code = "unsupported"
	// Deadline: it took longer than it may.
	Deadline Code = "deadline"
	// Failed: an outside program or system refused or died.
	Failed Code = "failed"
	// Internal: a broken invariant of Godwit itself.
	Internal Code = "internal"
)

// Error says what went wrong in the words of whoever must deal with it.
type Error struct {
	Code    Code
	Op      string // what was attempted: "start target"
	Subject string // what it was attempted on: "vm web1"
	Cause   string // why it failed, one sentence without a final stop
	Hint    string // what to do about it; may be empty
	Fields  []FieldError
	Err     error // the error below, if any; its text is not repeated in Cause

	// RetryAfter estimates when it may be possible; zero: nobody can tell.
	RetryAfter time.Duration
}

// FieldError is one thing that is wrong with a document, by its path in it:
// "disks[0].path".
type FieldError struct {
	Path    string
	Problem string
}

// Error gives one line: operation, subject, cause. The hint is shown apart.
func (e *Error) Error() string {
	var parts []string
	head := strings.TrimSpace(e.Op + " " + e.Subject)
	for _, part := range []string{head, e.Cause} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap gives the error below.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf gives the code of the outermost Error in err's chain, Internal for
// an error without one, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return Internal
}

// RetryAfterOf gives the outermost estimate in err's chain of when to try again,
// or zero.
func RetryAfterOf(err error) time.Duration {
	for {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return 0
		}
		if e.RetryAfter != 0 {
			return e.RetryAfter
		}
		err = e.Err
	}
}

// HintOf gives the outermost hint in err's chain, or "".
func HintOf(err error) string {
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return ""
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
