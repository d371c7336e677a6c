package store

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"godwit.dev/godwit/internal/fleet"
)

var (
	// ErrOutcomeUnknown is wrapped by a Commit's error when it may or may
	// not have happened.
	ErrOutcomeUnknown = errors.New("it is not known whether it happened")
	// ErrCompacted is wrapped when the history asked for is gone: list the
	// records again and watch from the revision of that list.
	ErrCompacted = errors.New("the history asked for was compacted")
)

// refusals are the errors with which etcd says that it did nothing and why.
// Anything that is not here leaves the outcome of a write open. So does
// ErrNoSpace, despite its name: etcd applies the request that crosses the quota
// and then refuses with the same error (quotaApplierV3 in its
// server/etcdserver/apply/quota.go).
var refusals = []struct {
	err   error
	code  fleet.Code
	cause string
	hint  string
}{
	{rpctypes.ErrNoSpace, fleet.Exhausted, "the database has reached its quota", hintFull},
	{rpctypes.ErrTooManyOps, fleet.Invalid, "too many changes at once for this etcd", "raise --max-txn-ops of the cluster to 128"},
	{rpctypes.ErrRequestTooLarge, fleet.Invalid, "too large for this etcd", "raise --max-request-bytes of the cluster to its default of 1.5 MiB"},
	{rpctypes.ErrDuplicateKey, fleet.Invalid, "one key is changed twice", ""},
	{rpctypes.ErrLeaseNotFound, fleet.Conflict, "the leadership was lost", ""},
	{rpctypes.ErrPermissionDenied, fleet.Denied, "etcd does not allow it", "grant the user read and write on the prefix"},
	{rpctypes.ErrUserEmpty, fleet.Denied, "etcd wants a user", "use a client certificate whose common name is an etcd user"},
	{rpctypes.ErrAuthFailed, fleet.Denied, "etcd refused the user", ""},
	{rpctypes.ErrInvalidAuthToken, fleet.Denied, "etcd refused the user", ""},
	{rpctypes.ErrCompacted, fleet.Conflict, "", ""},
}

// hintFull is what an operator can do; the server does the rest (see Full).
const hintFull = "try again in a minute: the server gives back by itself what old versions of records take; " +
	"if it stays full, delete VMs and networks that are not needed, or raise --quota-backend-bytes of an external cluster"

func refusal(err error) *fleet.Error {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			known := &fleet.Error{Code: r.code, Cause: r.cause, Hint: r.hint}
			if r.err == rpctypes.ErrCompacted {
				known.Err = ErrCompacted
			}
			return known
		}
	}
	return nil
}

func codeOf(err error) fleet.Code {
	if known := refusal(err); known != nil {
		return known.Code
	}
	return fleet.Unavailable
}

// translate says what a failed read or lease call means.
func translate(err error, op, subject string) error {
	known := refusal(err)
	if known == nil {
		known = &fleet.Error{Code: fleet.Unavailable, Cause: silence(err), Err: err}
	}
	known.Op, known.Subject = op, subject
	return known
}

// translateCommit is translate for a write, whose outcome may be open.
func translateCommit(err error, subject string) error {
	if known := refusal(err); known != nil {
		known.Op, known.Subject = "commit", subject
		if errors.Is(err, rpctypes.ErrNoSpace) {
			known.Err = ErrOutcomeUnknown
		}
		return known
	}
	return &fleet.Error{
		Code: fleet.Unavailable, Op: "commit", Subject: subject,
		Cause: silence(err), Err: errors.Join(ErrOutcomeUnknown, err),
		Hint: "read the record again before deciding anything",
	}
}

func silence(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded,
		errors.Is(err, rpctypes.ErrTimeout):
		return "the store did not answer in time"
	case errors.Is(err, context.Canceled), status.Code(err) == codes.Canceled:
		return "the call was cancelled"
	case errors.Is(err, rpctypes.ErrNoLeader), errors.Is(err, rpctypes.ErrLeaderChanged):
		return "the etcd cluster has no leader"
	}
	return "the store cannot be reached"
}

// MaxConflicts bounds how often a step is tried anew because somebody else
// changed a record of it.
const MaxConflicts = 10

// Passes: the store may answer otherwise later.
func Passes(err error) bool {
	switch fleet.CodeOf(err) {
	case fleet.Unavailable, fleet.Deadline, fleet.Exhausted, fleet.Conflict:
		return true
	}
	return false
}
