package wire_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"pgregory.net/rapid"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/wire"
)

var allCodes = []fleet.Code{
	fleet.Invalid, fleet.NotFound, fleet.Exists, fleet.Conflict, fleet.NoFit, fleet.Denied,
	fleet.Unavailable, fleet.Exhausted, fleet.Unsupported, fleet.Deadline, fleet.Failed, fleet.Internal,
}

func drawChain(t *rapid.T, depth int) error {
	e := &fleet.Error{
		Code: rapid.SampledFrom(allCodes).Draw(t, "code"),
		Op:   text(t), Subject: text(t), Cause: text(t), Hint: text(t),
		RetryAfter: time.Duration(rapid.IntRange(0, 1<<31).Draw(t, "retry after")) * time.Millisecond,
		Fields:     some(t, func(t *rapid.T) fleet.FieldError { return fleet.FieldError{Path: text(t), Problem: text(t)} }),
	}
	if depth == 0 {
		return e
	}
	switch rapid.SampledFrom([]string{"none", "plain", "direct", "wrapped"}).Draw(t, "below") {
	case "plain":
		e.Err = errors.New(text(t))
	case "direct":
		e.Err = drawChain(t, depth-1)
	case "wrapped":
		e.Err = fmt.Errorf("%s: %w", text(t), drawChain(t, depth-1))
	}
	if rapid.Bool().Draw(t, "wrap outside") {
		return fmt.Errorf("outside %s: %w", text(t), e)
	}
	return e
}

// parts gives every *fleet.Error in the chain without what is below it.
func parts(err error) []fleet.Error {
	var chain []fleet.Error
	for {
		e, ok := errors.AsType[*fleet.Error](err)
		if !ok {
			return chain
		}
		part := *e
		part.Err = nil
		chain = append(chain, part)
		err = e.Err
	}
}

func TestErrorCrossesTheWire(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := drawChain(t, 3)
		got := wire.FromConnect(wire.ToConnect(sent))
		if got.Error() != sent.Error() {
			t.Fatalf("text %q became %q", sent, got)
		}
		if want, have := parts(sent), parts(got); !reflect.DeepEqual(want, have) {
			t.Fatalf("chain changed:\nsent %+v\ngot  %+v", want, have)
		}
		if fleet.CodeOf(got) != fleet.CodeOf(sent) || fleet.HintOf(got) != fleet.HintOf(sent) {
			t.Fatalf("code %q or hint %q changed", fleet.CodeOf(got), fleet.HintOf(got))
		}
		if fleet.RetryAfterOf(got) != fleet.RetryAfterOf(sent) {
			t.Fatalf("retry after %v became %v", fleet.RetryAfterOf(sent), fleet.RetryAfterOf(got))
		}
		if again := wire.FromConnect(got); !errors.Is(again, got) {
			t.Fatalf("reading twice gives %v", again)
		}
	})
}

func TestToConnectCodes(t *testing.T) {
	tests := []struct {
		err  error
		want connect.Code
	}{
		{&fleet.Error{Code: fleet.Invalid}, connect.CodeInvalidArgument},
		{&fleet.Error{Code: fleet.Conflict}, connect.CodeAborted},
		{&fleet.Error{Code: fleet.NoFit}, connect.CodeFailedPrecondition},
		{fmt.Errorf("x: %w", &fleet.Error{Code: fleet.Denied}), connect.CodePermissionDenied},
		{&fleet.Error{Code: "from the future"}, connect.CodeInternal},
		{errors.New("broken"), connect.CodeInternal},
		{fmt.Errorf("x: %w", context.Canceled), connect.CodeCanceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), connect.CodeDeadlineExceeded},
		{connect.NewError(connect.CodeDataLoss, errors.New("x")), connect.CodeDataLoss},
	}
	for _, test := range tests {
		if got := wire.ToConnect(test.err).Code(); got != test.want {
			t.Errorf("%v: %v, want %v", test.err, got, test.want)
		}
	}
	if wire.ToConnect(nil) != nil || wire.FromConnect(nil) != nil {
		t.Error("no error became one")
	}
}

func TestFromConnectWithoutDetail(t *testing.T) {
	wired := func(code connect.Code) error { return connect.NewWireError(code, errors.New("said so")) }
	tests := []struct {
		name string
		err  error
		want fleet.Code
	}{
		{"not found", wired(connect.CodeNotFound), fleet.NotFound},
		{"no certificate", wired(connect.CodeUnauthenticated), fleet.Denied},
		{"method unknown", wired(connect.CodeUnimplemented), fleet.Unsupported},
		{"unknown", wired(connect.CodeUnknown), fleet.Internal},
		{"data loss", wired(connect.CodeDataLoss), fleet.Internal},
		{"server cancels", wired(connect.CodeCanceled), fleet.Unavailable},
		{"deadline", wired(connect.CodeDeadlineExceeded), fleet.Deadline},
		{"no server", connect.NewError(connect.CodeUnavailable, errors.New("refused")), fleet.Unavailable},
		{"not ours", connect.NewError(connect.CodeUnknown, errors.New("content type")), fleet.Internal},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := wire.FromConnect(test.err)
			if e, ok := errors.AsType[*fleet.Error](got); !ok || e.Code != test.want {
				t.Errorf("got %v with code %q, want %q", got, fleet.CodeOf(got), test.want)
			}
			if fleet.HintOf(got) == "" {
				t.Error("no hint")
			}
		})
	}
	if err := wire.FromConnect(wired(connect.CodeDeadlineExceeded)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not DeadlineExceeded", err)
	}
	cancelled := connect.NewError(connect.CodeCanceled, context.Canceled)
	if err := wire.FromConnect(cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not Canceled", err)
	}
}

func TestErrorsAreBounded(t *testing.T) {
	var chain error = &fleet.Error{Code: fleet.Failed, Cause: "root"}
	for range 100 {
		chain = &fleet.Error{Code: fleet.Failed, Cause: "\xff" + strings.Repeat("é", 10_000), Err: chain}
	}
	got := wire.FromConnect(wire.ToConnect(chain))
	if size := len(got.Error()); size > 64<<10 || !utf8.ValidString(got.Error()) {
		t.Errorf("%d bytes crossed, valid: %t", size, utf8.ValidString(got.Error()))
	}
	if n := len(parts(got)); n != 8 {
		t.Errorf("%d errors crossed", n)
	}
}

func TestEstimateOfAnotherServer(t *testing.T) {
	for sent, want := range map[int64]time.Duration{
		-5: 0, 0: 0, 1500: 1500 * time.Millisecond, math.MaxInt64: 30 * 24 * time.Hour,
	} {
		coded := connect.NewError(connect.CodeAborted, errors.New("conflict"))
		detail, err := connect.NewErrorDetail(&godwitv1.ErrorDetail{Code: string(fleet.Conflict), RetryAfterMs: sent})
		if err != nil {
			t.Fatal(err)
		}
		coded.AddDetail(detail)
		if got := fleet.RetryAfterOf(wire.FromConnect(coded)); got != want {
			t.Errorf("%d ms became %v, want %v", sent, got, want)
		}
	}
}
