package sim

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

const (
	storeTimeout = store.DefaultRequestTimeout
	leaderTTL    = store.DefaultLeaderTTL
	leaderKey    = "leader" // of a record that is there as long as somebody leads
)

// etcd is the store: versioned records, commits that happen in full or not at
// all, one lease for whoever leads.
type etcd struct {
	*wires
	node     *node
	records  map[string]held
	keys     []string // sorted
	revision int64
	changes  []*change
	watchers []func()

	leader  string
	term    int64 // the revision at which it was elected
	expires time.Duration

	away   time.Duration // no answer until then: no quorum, or no leader
	slow   time.Duration // what a commit takes, beside the usual
	full   time.Duration // no room until then, but for endings
	broken bool          // a bug: commits heed no condition on a migration
}

// change is what a watch tells, read once for all who are told.
type change struct {
	key       string
	version   int64
	vm        *fleet.VM // what was put, if it is one
	migration *migration.Migration
}

func newChange(key string, value []byte, version int64) *change {
	c := &change{key: key, version: version}
	switch {
	case value == nil:
	case strings.HasPrefix(key, vmPrefix):
		c.vm = new(decoded[fleet.VM](value))
	case strings.HasPrefix(key, migrationPrefix):
		c.migration = new(decoded[migration.Migration](value))
	}
	return c
}

// decoded reads a record that the simulator's own store holds.
func decoded[T any](value []byte) (record T) {
	if err := json.Unmarshal(value, &record); err != nil {
		panic(err)
	}
	return record
}

type held struct {
	value            []byte
	version, created int64
}

func newEtcd(w *wires, n *node) *etcd { return &etcd{wires: w, node: n, records: map[string]held{}} }

// client is a server's access to the store.
type client struct {
	*etcd
	from   *node
	ledger *ownerLog
}

var _ store.Records = client{}

// serve carries a request there and its answer back. It may be done long after
// nobody waits for it any more, or be lost on either way.
func (c client) serve(ctx context.Context, op string, do func() reply) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, &fleet.Error{Code: fleet.Unavailable, Op: op, Cause: "not attempted", Err: err}
	}
	got := c.await(func(done func(any)) {
		c.at(c.task.proc, storeTimeout, func() { done(reply{nil, unheard(op)}) })
		c.at(nil, c.latency(), func() {
			if c.passes(c.from, c.node) {
				c.arrived(do, done, c.from)
			}
		})
	}).(reply)
	return got.value, got.err
}

// arrived does a request in the store, as soon as it can.
func (e *etcd) arrived(do func() reply, done func(any), from *node) {
	wait := e.between(time.Millisecond, 4*time.Millisecond) + e.slow
	if e.away > e.now {
		if e.away-e.now > storeTimeout || e.one(2) {
			return // its member has lost it with the leader
		}
		wait += e.away - e.now
	}
	e.at(nil, wait, func() {
		answer := do()
		e.at(nil, e.latency(), func() {
			if e.passes(e.node, from) {
				done(answer)
			}
		})
	})
}

// unheard is the error of a request without an answer. It may have been done.
func unheard(op string) error {
	failed := &fleet.Error{Code: fleet.Unavailable, Op: op, Cause: "the store did not answer in time"}
	if op == "commit" {
		failed.Err = store.ErrOutcomeUnknown
	}
	return failed
}

// Get reads a record.
func (c client) Get(ctx context.Context, key string) (store.Record, error) {
	value, err := c.serve(ctx, "read", func() reply {
		one, found := c.records[key]
		if !found {
			return reply{nil, &fleet.Error{Code: fleet.NotFound, Op: "read", Subject: key, Cause: "there is no such record"}}
		}
		return reply{store.Record{Key: key, Value: one.value, Version: one.version}, nil}
	})
	record, _ := value.(store.Record)
	c.ledger.saw(record)
	return record, err
}

// listed is what List and All give.
type listed struct {
	records  []store.Record
	revision int64
}

// All reads every record under a prefix.
func (c client) All(ctx context.Context, prefix string) ([]store.Record, int64, error) {
	value, err := c.serve(ctx, "read", func() reply {
		first, _ := slices.BinarySearch(c.keys, prefix)
		var all listed
		for _, key := range c.keys[first:] {
			if !strings.HasPrefix(key, prefix) {
				break
			}
			all.records = append(all.records, store.Record{Key: key, Value: c.records[key].value, Version: c.records[key].version})
		}
		all.revision = c.revision
		return reply{all, nil}
	})
	all, _ := value.(listed)
	for _, record := range all.records {
		c.ledger.saw(record)
	}
	return all.records, all.revision, err
}

// List is All: no page is too small here.
func (c client) List(ctx context.Context, prefix string, _ store.Page) ([]store.Record, string, int64, error) {
	records, revision, err := c.All(ctx, prefix)
	return records, "", revision, err
}

// Watch is not had this way: a server is told of changes by watched.
func (c client) Watch(context.Context, string, int64) *store.Watch {
	return store.EndedWatch(errors.New("a simulated store has no watches"))
}

// Commit does all ops if all conditions hold.
func (c client) Commit(ctx context.Context, conditions []store.Condition, ops ...store.Op) (int64, error) {
	settle := c.ledger.writing(conditions, ops)
	value, err := c.serve(ctx, "commit", func() reply {
		revision, err := c.commit(conditions, ops)
		return reply{revision, err}
	})
	revision, _ := value.(int64)
	settle(revision, err)
	return revision, err
}

func (e *etcd) commit(conditions []store.Condition, ops []store.Op) (int64, error) {
	for _, c := range conditions {
		one := e.records[c.Key()]
		if c.Key() == leaderKey && e.expires > e.now {
			one = held{version: e.term, created: e.term}
		}
		if c.Holds(one.version, one.created) || e.broken && strings.HasPrefix(c.Key(), migrationPrefix) {
			continue
		}
		return 0, &fleet.Error{Code: fleet.Conflict, Op: "commit", Subject: c.Key(), Cause: "the record has another version"}
	}
	ends := func(o store.Op) bool { return o.Ends() }
	if e.full > e.now && !slices.ContainsFunc(ops, ends) {
		return 0, &fleet.Error{Code: fleet.Exhausted, Op: "commit", Cause: "the disk is full"}
	}
	e.revision++
	for _, o := range ops {
		e.apply(o)
	}
	for _, tell := range e.watchers {
		tell()
	}
	return e.revision, nil
}

func (e *etcd) apply(o store.Op) {
	value, deletes := o.Value()
	one, known := e.records[o.Key()]
	at, _ := slices.BinarySearch(e.keys, o.Key())
	switch {
	case deletes && known:
		delete(e.records, o.Key())
		e.keys = slices.Delete(e.keys, at, at+1)
	case deletes:
		return
	case !known:
		one.created = e.revision
		e.keys = slices.Insert(e.keys, at, o.Key())
	}
	one.value, one.version = value, e.revision
	if !deletes {
		e.records[o.Key()] = one
	}
	e.changes = append(e.changes, newChange(o.Key(), value, e.revision))
}

// campaign gives a server the lease if it is free. The answer is the term.
func (c client) campaign(name string) (int64, error) {
	value, err := c.serve(context.Background(), "campaign", func() reply {
		if c.expires > c.now && c.leader != name {
			return reply{int64(0), &fleet.Error{Code: fleet.Conflict, Op: "campaign", Cause: c.leader + " leads"}}
		}
		c.revision++
		c.leader, c.term, c.expires = name, c.revision, c.now+leaderTTL
		return reply{c.term, nil}
	})
	term, _ := value.(int64)
	return term, err
}

// renew keeps the lease; Conflict when it has lapsed.
func (c client) renew(term int64) error {
	_, err := c.serve(context.Background(), "renew", func() reply {
		if c.term != term || c.expires <= c.now {
			return reply{nil, &fleet.Error{Code: fleet.Conflict, Op: "renew", Cause: "the lease has lapsed"}}
		}
		c.expires = c.now + leaderTTL
		return reply{}
	})
	return err
}

// leads names the server that leads, by the store.
func (e *etcd) leads() string {
	if e.expires > e.now {
		return e.leader
	}
	return ""
}
