package store

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"godwit.dev/godwit/internal/fleet"
)

// MaxPage is the most records that one List returns.
const MaxPage = 1000

// Record is opaque bytes under a key, with the revision that last put them.
type Record struct {
	Key     string
	Value   []byte
	Version int64
}

func (s *Store) record(kv *mvccpb.KeyValue) Record {
	return Record{Key: s.relative(kv.Key), Value: kv.Value, Version: kv.ModRevision}
}

// Get reads one record, linearizably. NotFound when there is none.
func (s *Store) Get(ctx context.Context, key string) (Record, error) {
	if err := checkKey(key); err != nil {
		return Record{}, err
	}
	// The server in this process may answer without looking at the context.
	if err := ctx.Err(); err != nil {
		return Record{}, translate(err, "read", key)
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	response, err := s.client.Get(ctx, s.absolute(key))
	if err != nil {
		return Record{}, translate(err, "read", key)
	}
	if len(response.Kvs) == 0 {
		return Record{}, &fleet.Error{Code: fleet.NotFound, Op: "read", Subject: key, Cause: "there is no such record"}
	}
	return s.record(response.Kvs[0]), nil
}

// Page selects a part of a list.
type Page struct {
	After    string // continue after this key; "" from the beginning
	Limit    int    // most records wanted, 1 to MaxPage; 0 for MaxPage
	Revision int64  // read as of this revision, for pages that fit together; 0 for now
}

// List reads records whose keys begin with prefix, in order of key. next is
// the After of the following page, "" when this was the last. revision is the
// one the list is true for: give it to the following pages and to Watch. A
// revision that was compacted meanwhile gives ErrCompacted: begin again.
func (s *Store) List(ctx context.Context, prefix string, page Page) (records []Record, next string, revision int64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, "", 0, translate(err, "list", prefix)
	}
	limit := page.Limit
	if limit <= 0 || limit > MaxPage {
		limit = MaxPage
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	from, end := s.span(prefix, page.After)
	response, err := s.client.Get(ctx, from, clientv3.WithRange(end),
		clientv3.WithLimit(int64(limit)), clientv3.WithRev(page.Revision))
	if err != nil {
		return nil, "", 0, translate(err, "list", prefix)
	}
	for _, kv := range response.Kvs {
		records = append(records, s.record(kv))
	}
	if response.More && len(records) > 0 {
		next = records[len(records)-1].Key
	}
	revision = page.Revision
	if revision == 0 {
		revision = response.Header.Revision
	}
	return records, next, revision, nil
}

// All reads every record under prefix as of one revision.
func (s *Store) All(ctx context.Context, prefix string) (records []Record, revision int64, err error) {
	page := Page{}
	for {
		part, next, at, err := s.List(ctx, prefix, page)
		if err != nil {
			return nil, 0, err
		}
		records = append(records, part...)
		if next == "" {
			return records, at, nil
		}
		page.After, page.Revision = next, at
	}
}
