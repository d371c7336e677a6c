package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Backup writes a consistent copy of the whole database to w, in etcd's
// snapshot format ("etcdutl snapshot restore" reads it). The store serves
// meanwhile. It is as secret as the records themselves.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	snapshot, err := s.client.Snapshot(ctx)
	if err != nil {
		return translate(err, "back up", "store")
	}
	defer snapshot.Close()
	if _, err := io.Copy(w, snapshot); err != nil {
		return fmt.Errorf("copy the store's snapshot: %w", err)
	}
	return nil
}

// Mark is a point in the history of one store.
type Mark struct {
	Cluster  uint64 // etcd's own id of it
	Revision int64
}

// Mark gives the present one: no Commit that returned before is after it.
func (s *Store) Mark(ctx context.Context) (Mark, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	now, err := s.client.Get(ctx, s.config.Prefix, clientv3.WithCountOnly())
	if err != nil {
		return Mark{}, translate(err, "look at", "store")
	}
	return Mark{Cluster: now.Header.GetClusterId(), Revision: now.Header.GetRevision()}, nil
}

// Compact forgets the history before the present revision: watches from
// before it end in ErrCompacted. The embedded server does so by itself every
// hour.
func (s *Store) Compact(ctx context.Context) error {
	now, err := s.client.Get(ctx, s.config.Prefix, clientv3.WithCountOnly())
	if err != nil {
		return translate(err, "compact", "store")
	}
	// Physical: return when the space is free, so that Reclaim can use it.
	_, err = s.client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) { // that one: already done
		return translate(err, "compact", "store")
	}
	return nil
}

// AtQuota reports whether the database is refusing to grow, as it also does
// when it was opened so.
func (s *Store) AtQuota(ctx context.Context) (bool, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	response, err := s.client.AlarmList(ctx)
	if err != nil {
		return false, translate(err, "list the alarms of", "store")
	}
	return slices.ContainsFunc(response.Alarms, func(alarm *etcdserverpb.AlarmMember) bool {
		return alarm.Alarm == etcdserverpb.AlarmType_NOSPACE
	}), nil
}

// Reclaim makes a store writable again that reached its quota: it compacts,
// gives the free space back, and clears the alarm. If the records themselves
// fill the quota the next Commit meets it again: delete some before. Each member
// stands still while its database is rewritten, some seconds per gigabyte.
func (s *Store) Reclaim(ctx context.Context) error {
	if err := s.Compact(ctx); err != nil {
		return err
	}
	if err := s.defragment(ctx); err != nil {
		return translate(err, "reclaim space of", "store")
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return translate(err, "clear the alarm of", "store")
	}
	return nil
}

func (s *Store) defragment(ctx context.Context) error {
	if s.embedded != nil {
		return s.embedded.server.Server.Defragment()
	}
	for _, endpoint := range s.client.Endpoints() {
		if _, err := s.client.Defragment(ctx, endpoint); err != nil {
			return err
		}
	}
	return nil
}
