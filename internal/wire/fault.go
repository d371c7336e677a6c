package wire

import (
	"fmt"
	"strconv"

	"godwit.dev/godwit/internal/fleet"
)

// faults gathers what is wrong with one message.
type faults []fleet.FieldError

func (f *faults) add(path, problem string) {
	*f = append(*f, fleet.FieldError{Path: path, Problem: problem})
}

// err gives nil when nothing is wrong.
func (f faults) err(op string) error {
	if len(f) == 0 {
		return nil
	}
	return &fleet.Error{Code: fleet.Invalid, Op: op, Cause: "not a valid message", Fields: f}
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

func quote(text string) string { return strconv.Quote(text) }
