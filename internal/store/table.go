package store

import (
	"context"
	"encoding/json"
	"strings"

	"godwit.dev/godwit/internal/fleet"
)

// Records is what holds the records: a Store, or what behaves like one.
type Records interface {
	Get(ctx context.Context, key string) (Record, error)
	List(ctx context.Context, prefix string, page Page) (records []Record, next string, revision int64, err error)
	All(ctx context.Context, prefix string) (records []Record, revision int64, err error)
	Commit(ctx context.Context, conditions []Condition, ops ...Op) (int64, error)
	Watch(ctx context.Context, prefix string, after int64) *Watch
}

// Table is all records of one kind, as JSON of T under a prefix of its own.
type Table[T any] struct {
	store  Records
	prefix string // with the final slash
}

// Entry is a record of a Table.
type Entry[T any] struct {
	Name    string // the record's key within the table
	Value   T
	Version int64
}

// NewTable gives the table of that name, such as "vms".
func NewTable[T any](s Records, name string) Table[T] {
	return Table[T]{store: s, prefix: name + "/"}
}

// Key is the key of a record in the store.
func (t Table[T]) Key(name string) string { return t.prefix + name }

// Prefix is before all keys of the table; it ends in a slash.
func (t Table[T]) Prefix() string { return t.prefix }

// Get reads one entry. NotFound when there is none.
func (t Table[T]) Get(ctx context.Context, name string) (Entry[T], error) {
	record, err := t.store.Get(ctx, t.Key(name))
	if err != nil {
		return Entry[T]{}, err
	}
	return t.Decode(record)
}

// List reads a page of entries in order of name; page.After and next are
// names. The rest is as in Store.List.
func (t Table[T]) List(ctx context.Context, page Page) (entries []Entry[T], next string, revision int64, err error) {
	if page.After != "" {
		page.After = t.Key(page.After)
	}
	records, nextKey, revision, err := t.store.List(ctx, t.prefix, page)
	if err != nil {
		return nil, "", 0, err
	}
	entries, err = t.decodeAll(records)
	return entries, strings.TrimPrefix(nextKey, t.prefix), revision, err
}

// All reads every entry as of one revision.
func (t Table[T]) All(ctx context.Context) (entries []Entry[T], revision int64, err error) {
	records, revision, err := t.store.All(ctx, t.prefix)
	if err != nil {
		return nil, 0, err
	}
	entries, err = t.decodeAll(records)
	return entries, revision, err
}

// At, Absent and Present are the conditions of those names on an entry.
func (t Table[T]) At(name string, version int64) Condition { return At(t.Key(name), version) }

// Absent holds while there is no such entry.
func (t Table[T]) Absent(name string) Condition { return Absent(t.Key(name)) }

// Present holds while there is such an entry.
func (t Table[T]) Present(name string) Condition { return Present(t.Key(name)) }

// Put is the change that writes an entry. A value that has no JSON form makes
// the Commit fail with Invalid.
func (t Table[T]) Put(name string, value T) Op {
	data, err := json.Marshal(value)
	op := Put(t.Key(name), data)
	if err != nil {
		op.err = &fleet.Error{Code: fleet.Invalid, Op: "commit", Subject: op.key, Cause: "the value has no JSON form", Err: err}
	}
	return op
}

// Delete is the change that removes an entry.
func (t Table[T]) Delete(name string) Op { return Delete(t.Key(name)) }

// Watch reports changes of the table; Decode reads the events that are no
// deletions.
func (t Table[T]) Watch(ctx context.Context, after int64) *Watch {
	return t.store.Watch(ctx, t.prefix, after)
}

// Name is the name of an entry within the table.
func (t Table[T]) Name(record Record) string { return strings.TrimPrefix(record.Key, t.prefix) }

// Decode reads a record of the table. Internal when it is not JSON of T.
func (t Table[T]) Decode(record Record) (Entry[T], error) {
	entry := Entry[T]{Name: t.Name(record), Version: record.Version}
	if err := json.Unmarshal(record.Value, &entry.Value); err != nil {
		return entry, &fleet.Error{Code: fleet.Internal, Op: "decode", Subject: record.Key, Cause: "the record is damaged", Err: err}
	}
	return entry, nil
}

func (t Table[T]) decodeAll(records []Record) ([]Entry[T], error) {
	entries := make([]Entry[T], 0, len(records))
	for _, record := range records {
		entry, err := t.Decode(record)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}
