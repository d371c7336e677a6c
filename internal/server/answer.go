package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/store"
)

const (
	// keepAnswers is how long a request's id is known at least, forgetEvery how
	// much longer at most.
	keepAnswers = 24 * time.Hour
	forgetEvery = time.Hour
)

// creation is a request that makes something, and may bear an id that its client
// chose.
type creation interface {
	proto.Message
	GetRequestId() string
}

// keptAnswer is how a creation was answered, kept under its request's id. The
// commit that made what was asked for put it, so the versions are the same.
type keptAnswer struct {
	Request []byte    `json:"request"` // its digest
	Answer  []byte    `json:"answer"`  // a message of protobuf, without the version
	At      time.Time `json:"at"`
}

// receipt makes the commit of a creation keep the answer. The zero receipt is
// that of a request without an id, and keeps nothing.
type receipt struct {
	answers store.Table[keptAnswer]
	op, id  string
	digest  []byte
}

// once answers a creation as it was answered before, if it was; else by create,
// whose commit must have what its receipt demands. The version that create gives
// is set in the answer by stamp. earlier is an empty answer.
func once[A proto.Message](
	ctx context.Context, t tables, op string, request creation, earlier A, stamp func(A, int64), create func(receipt) (A, int64, error),
) (A, error) {
	var none A
	r, err := t.receipt(op, request)
	if err != nil {
		return none, err
	}
	version, err := r.find(ctx, earlier)
	if err != nil {
		return none, err
	}
	if version != 0 {
		stamp(earlier, version)
		return earlier, nil
	}
	answer, version, err := create(r)
	if err == nil {
		stamp(answer, version)
		return answer, nil
	}
	// The same request may have come twice at a time, and this one was slower; or
	// it was done, and only the store's word was lost.
	version, taken := r.find(ctx, earlier)
	switch {
	case fleet.CodeOf(taken) == fleet.Conflict:
		return none, taken
	case version != 0:
		stamp(earlier, version)
		return earlier, nil
	}
	return none, err
}

func (t tables) receipt(op string, request creation) (receipt, error) {
	id := request.GetRequestId()
	if id == "" {
		return receipt{}, nil
	}
	if err := fleet.CheckRequestID(id); err != nil {
		return receipt{}, invalidField(op, "", "request_id", err.Error())
	}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(request)
	if err != nil {
		return receipt{}, err
	}
	digest := sha256.New()
	digest.Write([]byte(request.ProtoReflect().Descriptor().FullName()))
	digest.Write([]byte{0})
	digest.Write(encoded)
	return receipt{answers: t.answers, op: op, id: id, digest: digest.Sum(nil)}, nil
}

// find reads how the request was answered before, into an empty answer, and
// gives the version of what was made; zero if it is new. Conflict when its id is
// another request's.
func (r receipt) find(ctx context.Context, into proto.Message) (version int64, err error) {
	if r.id == "" {
		return 0, nil
	}
	entry, err := r.answers.Get(ctx, r.id)
	if fleet.CodeOf(err) == fleet.NotFound {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(entry.Value.Request, r.digest) {
		return 0, &fleet.Error{
			Code: fleet.Conflict, Op: r.op, Subject: "request " + r.id, Cause: "another request had this id",
			Hint: fmt.Sprintf("choose a new id for what is not the same request; one is free again %v after its use", keepAnswers+forgetEvery),
		}
	}
	if err := proto.Unmarshal(entry.Value.Answer, into); err != nil {
		return 0, &fleet.Error{Code: fleet.Internal, Op: r.op, Subject: "request " + r.id, Cause: "the answer that was kept is damaged", Err: err}
	}
	return entry.Version, nil
}

// keep gives what the commit of a creation needs so that the answer is kept.
func (r receipt) keep(answer proto.Message) ([]store.Condition, []store.Op, error) {
	if r.id == "" {
		return nil, nil, nil
	}
	encoded, err := proto.Marshal(answer)
	if err != nil {
		return nil, nil, err
	}
	kept := keptAnswer{Request: r.digest, Answer: encoded, At: time.Now()}
	return store.If(r.answers.Absent(r.id)), []store.Op{r.answers.Put(r.id, kept)}, nil
}
