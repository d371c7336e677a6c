package fleetlab

import (
	"context"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Final tells that a migration has ended, however.
func Final(m *godwitv1.Migration) bool {
	switch m.GetState() {
	case "succeeded", "aborted", "needs-operator":
		return true
	}
	return false
}

// Migrate moves a VM and gives the migration in its final state. Each is
// called with every change and may be nil.
func (f *Fleet) Migrate(ctx context.Context, request *godwitv1.CreateMigrationRequest, each func(*godwitv1.Migration)) (*godwitv1.Migration, error) {
	created, err := f.API.Migration.Create(ctx, request)
	if err != nil {
		return nil, err
	}
	return f.Follow(ctx, created.GetMigration().GetId(), each)
}

// Follow calls each with every change of a migration until it is final, also
// if the server is away for a while, and gives its final state.
func (f *Fleet) Follow(ctx context.Context, id string, each func(*godwitv1.Migration)) (*godwitv1.Migration, error) {
	for {
		last, err := f.watch(ctx, id, each)
		if Final(last) || err != nil && fleet.CodeOf(err) != fleet.Unavailable {
			return last, err
		}
		select {
		case <-time.After(askEvery): // nothing tells when a server is back
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}

// watch reads one stream to its end or the migration's.
func (f *Fleet) watch(ctx context.Context, id string, each func(*godwitv1.Migration)) (last *godwitv1.Migration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := f.API.Migration.Watch(ctx, &godwitv1.WatchMigrationRequest{Id: id})
	if err != nil {
		return nil, err
	}
	defer changes.Close()
	defer cancel() // before Close, which else waits for the server to end the stream
	for changes.Receive() {
		last = changes.Msg().GetMigration()
		if each != nil {
			each(last)
		}
		if Final(last) {
			return last, nil
		}
	}
	return last, changes.Err()
}
