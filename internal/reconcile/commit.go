package reconcile

import (
	"context"
	"errors"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// CommitStream is a target's line to the commit.
type CommitStream interface {
	Receive() (*godwitv1.CommitRequest, error)
	Send(*godwitv1.CommitResponse) error
}

// ServeCommit keeps the line of a target that is to be: it says when the source
// has stopped, and answers when the target has loaded. stop unblocks Receive.
func (r *Reconciler) ServeCommit(ctx context.Context, host fleet.HostName, line CommitStream, stop func()) error {
	request, err := line.Receive()
	if err != nil {
		return err
	}
	if !request.GetLoaded() {
		if err := r.awaitLoaded(ctx, host, request, line, stop); err != nil {
			return err
		}
	}
	changed, unwatch := r.Watch(fleet.MigrationID(request.GetMigration()))
	defer unwatch()
	for {
		answer, err := r.Commit(ctx, host, request)
		if err == nil {
			return line.Send(answer)
		}
		if !errors.Is(err, errAwaitsSource) {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return err
		}
	}
}

// errAwaitsSource is no refusal: the target may ask again.
var errAwaitsSource = errors.New("its source's QEMU may yet run the guest on by itself")

// awaitLoaded returns when the target says that it has loaded.
func (r *Reconciler) awaitLoaded(ctx context.Context, host fleet.HostName, request *godwitv1.CommitRequest, line CommitStream, stop func()) error {
	if _, err := r.moves(ctx, host, request); err != nil { // before anything is kept for it
		return err
	}
	changed, unwatch := r.Watch(fleet.MigrationID(request.GetMigration()))
	defer unwatch()
	loaded := make(chan error, 1)
	go func() {
		loaded <- receiveLoaded(request, line)
	}()
	giveUp := func(err error) error {
		stop()
		<-loaded
		return err
	}
	for said := false; ; {
		m, err := r.moves(ctx, host, request)
		if err == nil && m.State.Final() {
			err = migration.Refusal(m, migration.Event{Kind: migration.TargetLoaded, From: string(host)})
		}
		if err == nil && m.State == migration.Switching && !said {
			said = true
			err = line.Send(&godwitv1.CommitResponse{SourceStopped: true})
		}
		if err != nil {
			return giveUp(err)
		}
		select {
		case <-changed:
		case err := <-loaded:
			return err
		case <-ctx.Done():
			return giveUp(ctx.Err())
		}
	}
}

// receiveLoaded returns when the target that opened the line says that it has
// loaded. Anything else ends the line, and refuses nothing: it may ask again.
func receiveLoaded(opened *godwitv1.CommitRequest, line CommitStream) error {
	request, err := line.Receive()
	if err != nil {
		return err
	}
	if !request.GetLoaded() || request.GetMigration() != opened.GetMigration() || request.GetEpoch() != opened.GetEpoch() {
		return &fleet.Error{
			Code: fleet.Invalid, Op: "commit", Subject: "migration " + opened.GetMigration(),
			Cause: "what followed on the target's line does not say that it has loaded",
		}
	}
	return nil
}

// moves gives the migration that a target asks for.
func (r *Reconciler) moves(ctx context.Context, host fleet.HostName, request *godwitv1.CommitRequest) (migration.Migration, error) {
	id := fleet.MigrationID(request.GetMigration())
	m, err := r.heard(ctx, id, host, migration.TargetLoaded)
	if err != nil {
		return m, err
	}
	if epoch := fleet.Epoch(request.GetEpoch()); epoch != m.Epoch {
		return m, &fleet.Error{
			Code: fleet.Conflict, Op: "commit", Subject: "migration " + string(id),
			Cause: fmt.Sprintf("it moves %s on from epoch %d, not from epoch %d", m.VM, m.Epoch, epoch),
		}
	}
	return m, nil
}

// Commit answers a target that has loaded everything. The answer is the right
// to run; it is the same however often it is asked for, until the target runs.
func (r *Reconciler) Commit(ctx context.Context, host fleet.HostName, request *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
	id := fleet.MigrationID(request.GetMigration())
	if _, err := r.moves(ctx, host, request); err != nil {
		return nil, err
	}
	event := migration.Event{Kind: migration.TargetLoaded, From: string(host)}
	m, _, err := r.Advance(ctx, id, event)
	switch {
	case err != nil:
		return nil, err
	case m.AwaitsSource():
		return nil, &fleet.Error{Code: fleet.Unavailable, Op: "commit", Subject: "migration " + string(id), Cause: errAwaitsSource.Error(), Err: errAwaitsSource}
	case runSequence(m) == 0: // not committed, or it has run, or it must not any more
		return nil, migration.Refusal(m, event)
	}
	return &godwitv1.CommitResponse{Epoch: uint64(m.Owner().Epoch), Sequence: runSequence(m), VolumeKey: r.volumeKey(&m)}, nil
}

// runSequence gives the sequence of the pending RunTarget, zero once the
// target has answered it.
func runSequence(m migration.Migration) uint64 {
	for _, effect := range m.Pending {
		if effect.Kind == migration.RunTarget {
			return effect.Sequence
		}
	}
	return 0
}
