package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"godwit.dev/godwit/internal/fleet"
)

// bounded is the value of a flag that has a least and a greatest value. A flag
// that was not given may hold zero, for a default that its usage tells; given
// on the command line, zero must be within the bounds like every other value.
type bounded[T cmp.Ordered] struct {
	to       *T
	min, max T
	parse    func(string) (T, error)
	show     func(T) string
	kind     string // for the help text, unless the usage has a name in backquotes
}

func (b *bounded[T]) Set(text string) error {
	value, err := b.parse(text)
	if err != nil {
		return err
	}
	if value < b.min || value > b.max {
		return fmt.Errorf("%s is not within %s..%s", text, b.show(b.min), b.show(b.max))
	}
	*b.to = value
	return nil
}

// String gives "" for zero, so that the help text shows it as no default.
func (b *bounded[T]) String() string {
	var zero T
	if b.to == nil || *b.to == zero {
		return ""
	}
	return b.show(*b.to)
}

func (b *bounded[T]) Type() string { return b.kind }

// durationFlag adds a flag for a time. What *to holds is its default.
func durationFlag(cmd *cobra.Command, to *time.Duration, name string, least, most time.Duration, usage string) {
	cmd.Flags().Var(&bounded[time.Duration]{to, least, most, parseDuration, shortDuration, "duration"}, name, usage)
}

// bytesFlag adds a flag for an amount of bytes. What *to holds is its default.
func bytesFlag(cmd *cobra.Command, to *fleet.Bytes, name string, least, most fleet.Bytes, usage string) {
	cmd.Flags().Var(&bounded[fleet.Bytes]{to, least, most, fleet.ParseBytes, fleet.Bytes.String, "bytes"}, name, usage)
}

// intFlag adds a flag for a whole number. What *to holds is its default.
func intFlag(cmd *cobra.Command, to *int, name string, least, most int, usage string) {
	cmd.Flags().Var(&bounded[int]{to, least, most, parseInt, strconv.Itoa, "number"}, name, usage)
}

// versionFlag adds a flag for the version that a record must have, so that nobody
// changes what they have not seen.
func versionFlag(cmd *cobra.Command, to *int64) {
	cmd.Flags().Var(&bounded[int64]{to, 1, math.MaxInt64, parseInt64, formatInt64, "version"}, "if-version",
		"do it only if the record still has this version, as show prints it")
}

// requestFlag adds a flag for the name of a request, by which the server knows it
// when it comes again.
func requestFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().Func("request-id", "a `name` for this request; sent again with it within a day, it is not done twice", func(text string) error {
		*to = text
		return fleet.CheckRequestID(text)
	})
}

// addressList is a list with commas that a flag may add to, the first time in
// place of the default.
type addressList struct {
	to    *string
	given bool
}

func (l *addressList) Set(text string) error {
	if l.given {
		text = *l.to + "," + text
	}
	*l.to, l.given = text, true
	return nil
}

func (l *addressList) String() string {
	if l.to == nil {
		return ""
	}
	return *l.to
}

func (l *addressList) Type() string { return "string" }

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a time: write a number and ms, s, m or h, such as 90s", text)
	}
	return d, nil
}

func parseInt(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", text)
	}
	return n, nil
}

func parseInt64(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", text)
	}
	return n, nil
}

func formatInt64(n int64) string { return strconv.FormatInt(n, 10) }

// shortDuration leaves out the zero minutes and seconds of a full hour or
// minute.
func shortDuration(d time.Duration) string {
	switch {
	case d != 0 && d%time.Hour == 0:
		return strconv.FormatInt(int64(d/time.Hour), 10) + "h"
	case d != 0 && d < time.Hour && d%time.Minute == 0:
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	}
	return d.String()
}

// badFlag says what is wrong with a flag without the words of Go's parsers.
func badFlag(cmd *cobra.Command, err error) error {
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return misused(cmd, err.Error())
	}
	problem := bad.Unwrap().Error()
	if number, ok := errors.AsType[*strconv.NumError](err); ok {
		problem = fmt.Sprintf("%q is not a whole number", bad.GetValue())
		switch {
		case number.Func == "ParseBool":
			problem = fmt.Sprintf("%q is neither true nor false", bad.GetValue())
		case errors.Is(err, strconv.ErrRange):
			problem = bad.GetValue() + " is too large"
		case number.Func == "ParseUint":
			problem += " of 0 or more"
		}
	}
	return misused(cmd, "--"+bad.GetFlag().Name+": "+problem)
}

// checkNoneEmpty refuses flags that were given an empty value: nearly always a
// variable of a script that is not set, and then "anywhere" or "all" is not
// what was meant.
func checkNoneEmpty(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if err == nil && flag.Value.Type() == "string" && flag.Value.String() == "" {
			err = misused(cmd, "--"+flag.Name+" is empty; name something, or leave the flag out")
		}
	})
	return err
}

// demand refuses a command line without the flags named, and names all that
// are missing.
func demand(cmd *cobra.Command, names ...string) error {
	missing := ""
	for _, name := range names {
		if !cmd.Flags().Changed(name) {
			missing += ", --" + name
		}
	}
	if missing == "" {
		return nil
	}
	return misused(cmd, "what is missing: "+missing[2:])
}

func invalidFlag(name, problem string) error {
	return &fleet.Error{
		Code: fleet.Invalid, Op: "read --" + name, Cause: problem,
		Hint: "--help says what the flag means",
	}
}
