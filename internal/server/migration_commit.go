package server

import (
	"context"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// commit answers a target that has loaded everything. The answer is the right
// to run; it is the same however often it is asked for, until the target runs. A target that is ahead
// of its source's word waits for it, at most as long as ctx.
func (r *reconciler) commit(ctx context.Context, host fleet.HostName, request *godwitv1.CommitRequest) (*godwitv1.CommitResponse, error) {
	id := fleet.MigrationID(request.GetMigration())
	moves, err := r.heard(ctx, id, host, migration.TargetLoaded)
	if err != nil {
		return nil, err
	}
	if epoch := fleet.Epoch(request.GetEpoch()); epoch != moves.Epoch {
		return nil, &fleet.Error{
			Code: fleet.Conflict, Op: "commit", Subject: "migration " + string(id),
			Cause: fmt.Sprintf("it moves %s on from epoch %d, not from epoch %d", moves.VM, moves.Epoch, epoch),
		}
	}
	event := migration.Event{Kind: migration.TargetLoaded, From: string(host), Target: targetMarksOf(request.GetMarks())}
	changed, stop := r.runOf(id).watch()
	defer stop()
	for {
		m, verdict, err := r.advance(ctx, id, event)
		switch {
		case err != nil:
			return nil, err
		case verdict == migration.Early:
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		case runSequence(m) == 0: // not committed, or it has run, or it must not any more
			return nil, migration.Refusal(m, event)
		}
		return &godwitv1.CommitResponse{Epoch: uint64(m.Owner().Epoch), Sequence: runSequence(m)}, nil
	}
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
