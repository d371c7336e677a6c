package store

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"godwit.dev/godwit/internal/fleet"
)

// Limits of one Commit.
const (
	MaxOps   = 128
	MaxValue = 1 * fleet.MiB // of all values of a Commit together
)

// Condition must hold for a Commit to happen.
type Condition struct {
	key     string
	subject subject
	want    int64
}

// Key is the key of the record that it is about.
func (c Condition) Key() string { return c.key }

// Holds tells whether it does, for a record of that version, created as that
// revision; both are 0 for one that does not exist.
func (c Condition) Holds(version, created int64) bool {
	switch c.subject {
	case isPresent:
		return created != 0
	case createdAt:
		return created == c.want
	}
	return version == c.want
}

type subject int

const (
	versionIs subject = iota + 1
	isPresent
	createdAt
)

// At holds while the record's version is version; 0 means it does not exist.
func At(key string, version int64) Condition { return Condition{key, versionIs, version} }

// Absent holds while there is no record under key.
func Absent(key string) Condition { return At(key, 0) }

// Present holds while there is a record under key, of any version.
func Present(key string) Condition { return Condition{key, isPresent, 0} }

// If lists the conditions of a Commit.
func If(conditions ...Condition) []Condition { return conditions }

// Op is one change of a Commit.
type Op struct {
	key    string
	value  []byte
	delete bool
	ending bool
	lease  clientv3.LeaseID
	err    error // found when the Op was made, reported by Commit
}

// Key is the key of the record that it changes.
func (o Op) Key() string { return o.key }

// Value is what it writes; deletes says that it removes the record instead.
func (o Op) Value() (value []byte, deletes bool) { return o.value, o.delete }

// Ends reports whether it is an Ending one.
func (o Op) Ends() bool { return o.ending }

// Put writes a record.
func Put(key string, value []byte) Op { return Op{key: key, value: value} }

// Delete removes a record; one that does not exist is no error.
func Delete(key string) Op { return Op{key: key, delete: true} }

// During makes a put record vanish when the leadership ends.
func (o Op) During(l *Leadership) Op {
	o.lease = l.lease
	return o
}

// Ending marks a change that carries something to its end which was begun when
// there was room, and takes next to none itself: a Commit of it may use part of
// what is kept in reserve on the embedded server's disk.
func (o Op) Ending() Op {
	o.ending = true
	return o
}

// Commit does all ops if all conditions hold, and nothing otherwise. It
// returns the new revision, which is the Version of every record put.
//
// A condition that does not hold gives Conflict and says which. Invalid is
// for what can never succeed. Exhausted means that the disk or the database is
// full, Unavailable that there was no answer. Where errors.Is finds
// ErrOutcomeUnknown in the error, which is so for most of Unavailable and for a
// full database, the Commit may have happened, may not have, or may happen yet:
// read again. Everywhere else nothing was done. Cancelling ctx while the Commit
// runs leaves its outcome unknown too.
func (s *Store) Commit(ctx context.Context, conditions []Condition, ops ...Op) (int64, error) {
	if err := s.admissible(ctx, conditions, ops); err != nil {
		return 0, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	var compares []clientv3.Cmp
	var states []clientv3.Op
	for _, c := range conditions {
		compares = append(compares, s.compare(c))
		states = append(states, clientv3.OpGet(s.absolute(c.key), clientv3.WithKeysOnly()))
	}
	var changes []clientv3.Op
	for _, o := range ops {
		changes = append(changes, s.change(o))
	}
	response, err := s.client.Txn(ctx).If(compares...).Then(changes...).Else(states...).Commit()
	switch {
	case err != nil:
		if errors.Is(err, rpctypes.ErrNoSpace) {
			s.signalFull()
		}
		return 0, translateCommit(err, subjectOf(ops))
	case !response.Succeeded:
		return 0, conflict(conditions, response.Responses)
	}
	return response.Header.Revision, nil
}

func (s *Store) compare(c Condition) clientv3.Cmp {
	key := s.absolute(c.key)
	switch c.subject {
	case isPresent:
		return clientv3.Compare(clientv3.CreateRevision(key), "!=", 0)
	case createdAt:
		return clientv3.Compare(clientv3.CreateRevision(key), "=", c.want)
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", c.want)
}

func (s *Store) change(o Op) clientv3.Op {
	if o.delete {
		return clientv3.OpDelete(s.absolute(o.key))
	}
	return clientv3.OpPut(s.absolute(o.key), string(o.value), clientv3.WithLease(o.lease))
}

// admissible refuses what can be known to fail before anything is sent.
func (s *Store) admissible(ctx context.Context, conditions []Condition, ops []Op) error {
	if err := ctx.Err(); err != nil {
		return &fleet.Error{Code: fleet.Unavailable, Op: "commit", Subject: subjectOf(ops), Cause: "not attempted", Err: err}
	}
	if len(ops) == 0 || len(ops) > MaxOps || len(conditions) > MaxOps {
		return invalidCommit(ops, fmt.Sprintf("a commit has 1 to %d changes and at most %d conditions", MaxOps, MaxOps))
	}
	size, deletesOnly, ending := 0, true, false
	for _, o := range ops {
		if o.err != nil {
			return o.err
		}
		if err := checkKey(o.key); err != nil {
			return err
		}
		size += len(o.value)
		deletesOnly = deletesOnly && o.delete
		ending = ending || o.ending
	}
	for _, c := range conditions {
		if err := checkKey(c.key); err != nil {
			return err
		}
	}
	if fleet.Bytes(size) > MaxValue {
		return invalidCommit(ops, fmt.Sprintf("its values have %d bytes, more than %v", size, MaxValue))
	}
	switch {
	case s.embedded == nil || deletesOnly:
		return nil
	case ending:
		return s.embedded.room(minFreeEnding)
	}
	return s.embedded.room(minFree)
}

func invalidCommit(ops []Op, cause string) error {
	return &fleet.Error{Code: fleet.Invalid, Op: "commit", Subject: subjectOf(ops), Cause: cause}
}

func subjectOf(ops []Op) string {
	if len(ops) == 0 {
		return ""
	}
	return ops[0].key
}

// conflict names the first condition that did not hold. responses are the
// states of the conditions' keys, read in the same transaction.
func conflict(conditions []Condition, responses []*etcdserverpb.ResponseOp) error {
	for i, c := range conditions {
		var version, created int64
		if kvs := responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			version, created = kvs[0].ModRevision, kvs[0].CreateRevision
		}
		var cause string
		switch {
		case c.subject == createdAt && created != c.want:
			cause = "the leadership was lost"
		case c.subject == isPresent && version == 0:
			cause = "the record does not exist"
		case c.subject == versionIs && version != c.want && c.want == 0:
			cause = fmt.Sprintf("the record exists, at version %d", version)
		case c.subject == versionIs && version != c.want && version == 0:
			cause = "the record was deleted"
		case c.subject == versionIs && version != c.want:
			cause = fmt.Sprintf("the record is at version %d, not %d", version, c.want)
		default:
			continue
		}
		return &fleet.Error{Code: fleet.Conflict, Op: "commit", Subject: c.key, Cause: cause}
	}
	return &fleet.Error{Code: fleet.Internal, Op: "commit", Cause: "refused although every condition holds"}
}
