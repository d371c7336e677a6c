package wire

import (
	"context"
	"errors"
	"strings"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// What of an error crosses the wire at most; more is cut off.
const (
	maxDetails   = 8       // errors of a chain
	maxFields    = 256     // fields of one error
	maxErrorText = 4 << 10 // bytes of each text

	maxRetryAfter = 30 * 24 * time.Hour // what is longer is no estimate
)

var connectCodes = map[fleet.Code]connect.Code{
	fleet.Invalid:     connect.CodeInvalidArgument,
	fleet.NotFound:    connect.CodeNotFound,
	fleet.Exists:      connect.CodeAlreadyExists,
	fleet.Conflict:    connect.CodeAborted,
	fleet.NoFit:       connect.CodeFailedPrecondition,
	fleet.Denied:      connect.CodePermissionDenied,
	fleet.Unavailable: connect.CodeUnavailable,
	fleet.Exhausted:   connect.CodeResourceExhausted,
	fleet.Unsupported: connect.CodeUnimplemented,
	fleet.Deadline:    connect.CodeDeadlineExceeded,
	fleet.Failed:      connect.CodeUnknown,
	fleet.Internal:    connect.CodeInternal,
}

// fleetCode is what a code means that came without an ErrorDetail.
func fleetCode(code connect.Code) fleet.Code {
	switch code {
	case connect.CodeUnauthenticated:
		return fleet.Denied
	case connect.CodeCanceled:
		return fleet.Unavailable
	case connect.CodeUnknown:
		return fleet.Internal
	}
	for known, coded := range connectCodes {
		if coded == code {
			return known
		}
	}
	return fleet.Internal
}

// ToConnect gives the form in which err leaves the server; nil stays nil. An
// error of Connect itself passes unchanged, the end of a context keeps its
// meaning, and any other error without a *fleet.Error becomes Internal.
func ToConnect(err error) *connect.Error {
	if err == nil {
		return nil
	}
	outer, ok := errors.AsType[*fleet.Error](err)
	if !ok {
		if coded, ok := errors.AsType[*connect.Error](err); ok {
			return coded
		}
		switch {
		case errors.Is(err, context.Canceled):
			return connect.NewError(connect.CodeCanceled, err)
		case errors.Is(err, context.DeadlineExceeded):
			return connect.NewError(connect.CodeDeadlineExceeded, err)
		}
		outer = &fleet.Error{
			Code:  fleet.Internal,
			Cause: clip(err.Error()),
			Hint:  "this is a fault in Godwit itself: the server's log says more",
		}
		err = outer
	}
	code, ok := connectCodes[outer.Code]
	if !ok {
		code = connect.CodeInternal
	}
	coded := connect.NewError(code, errors.New(clip(err.Error())))
	for _, message := range encodeChain(err) {
		detail, err := connect.NewErrorDetail(message)
		if err != nil {
			break // cannot be encoded: the code and the message still arrive
		}
		coded.AddDetail(detail)
	}
	return coded
}

// encodeChain gives one message for each *fleet.Error in the chain.
func encodeChain(err error) []*godwitv1.ErrorDetail {
	var messages []*godwitv1.ErrorDetail
	for err != nil && len(messages) < maxDetails {
		e, ok := errors.AsType[*fleet.Error](err)
		if !ok {
			break
		}
		messages = append(messages, encodeError(e, len(messages) == maxDetails-1))
		err = e.Err
	}
	return messages
}

// encodeError leaves out the text of the error below where that is the next
// *fleet.Error itself, unless this one is the last that is sent.
func encodeError(e *fleet.Error, last bool) *godwitv1.ErrorDetail {
	message := &godwitv1.ErrorDetail{
		Code:    string(e.Code),
		Op:      clip(e.Op),
		Subject: clip(e.Subject),
		Cause:   clip(e.Cause),
		Hint:    clip(e.Hint),

		RetryAfterMs: e.RetryAfter.Milliseconds(),
	}
	for _, field := range e.Fields[:min(len(e.Fields), maxFields)] {
		message.Fields = append(message.Fields, &godwitv1.FieldError{Path: clip(field.Path), Problem: clip(field.Problem)})
	}
	if e.Err == nil {
		return message
	}
	below, ok := errors.AsType[*fleet.Error](e.Err)
	if direct := ok && error(below) == e.Err; !direct || last {
		message.Lines = strings.Split(clip(e.Err.Error()), "\n")
	}
	return message
}

// FromConnect gives the error that ToConnect was given, as far as it crossed:
// every *fleet.Error of the chain and the text of all others. An error without
// a detail gets the code that fits best and a hint. The end of a context keeps
// its identity for errors.Is. FromConnect of its own result changes nothing.
func FromConnect(err error) error { return fromConnect(err, "") }

// fromConnect names the server that was called, where that is known.
func fromConnect(err error, server string) error {
	coded, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	if decoded := decodeChain(coded.Details()); decoded != nil {
		if text := coded.Message(); text != decoded.Error() {
			return &remote{text: text, below: decoded}
		}
		return decoded
	}
	switch {
	case coded.Code() == connect.CodeDeadlineExceeded:
		return &fleet.Error{
			Code:  fleet.Deadline,
			Cause: "no answer within the time allowed",
			Hint:  "it may still have been done: look before doing it again",
			Err:   context.DeadlineExceeded,
		}
	case !connect.IsWireError(err) && errors.Is(err, context.Canceled):
		return context.Canceled
	case !connect.IsWireError(err):
		return unreached(coded, server)
	case coded.Code() == connect.CodeCanceled:
		return &fleet.Error{
			Code:  fleet.Unavailable,
			Cause: "the server ended the call",
			Hint:  "it is probably being stopped or restarted: try again",
		}
	}
	return &fleet.Error{
		Code:  fleetCode(coded.Code()),
		Cause: coded.Message(),
		Hint:  "is this a Godwit server of the same version?",
	}
}

// decodeChain gives nil when no detail is an ErrorDetail.
func decodeChain(details []*connect.ErrorDetail) error {
	var chain error
	for i := len(details) - 1; i >= 0; i-- {
		value, err := details[i].Value()
		if err != nil {
			continue // of a type that this version does not know
		}
		message, ok := value.(*godwitv1.ErrorDetail)
		if !ok {
			continue
		}
		below := chain
		if lines := message.GetLines(); len(lines) > 0 {
			below = &remote{text: strings.Join(lines, "\n"), below: chain}
		}
		chain = decodeError(message, below)
	}
	return chain
}

func decodeError(message *godwitv1.ErrorDetail, below error) *fleet.Error {
	code := fleet.Code(message.GetCode())
	if _, known := connectCodes[code]; !known {
		code = fleet.Internal
	}
	e := &fleet.Error{
		Code:    code,
		Op:      message.GetOp(),
		Subject: message.GetSubject(),
		Cause:   message.GetCause(),
		Hint:    message.GetHint(),
		Err:     below,

		RetryAfter: time.Duration(max(0, min(message.GetRetryAfterMs(), maxRetryAfter.Milliseconds()))) * time.Millisecond,
	}
	for _, field := range message.GetFields() {
		e.Fields = append(e.Fields, fleet.FieldError{Path: field.GetPath(), Problem: field.GetProblem()})
	}
	return e
}

// remote stands for an error of the other side of which only the text crossed.
type remote struct {
	text  string
	below error
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.below }

// clip cuts a text to what may cross the wire, as valid UTF-8, which protobuf
// demands and the words of other programs need not be.
func clip(text string) string {
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}
