package server

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/store"
)

// migrationService serves godwit.v1.MigrationService.
type migrationService struct {
	tables tables
	runs   *reconciler
	mirror *mirror
	// mayBeUp refuses an operation on its subject when a host without a session
	// may be up.
	mayBeUp func(host fleet.HostName, op, subject string) error
}

func (s *Server) migrationService() *migrationService {
	return &migrationService{tables: s.tables, runs: s.migrations, mirror: s.mirror, mayBeUp: s.mayBeUp}
}

func (s *migrationService) Create(ctx context.Context, request *godwitv1.CreateMigrationRequest) (*godwitv1.CreateMigrationResponse, error) {
	reason := request.GetReason()
	if reason == "" {
		reason = "by hand"
	}
	create := func(r receipt) (*godwitv1.CreateMigrationResponse, int64, error) {
		entry, err := s.runs.create(ctx, migrationRequest{
			vm: fleet.VMName(request.GetVm()), version: request.GetVersion(),
			target: fleet.HostName(request.GetTarget()), reason: reason, receipt: r,
			policy: func(copied fleet.Bytes) (migration.Policy, error) { return policyOf(request.GetPolicy(), copied) },
		})
		return createdMessage(entry.Value), entry.Version, err
	}
	return once(ctx, s.tables, "migrate", request, new(godwitv1.CreateMigrationResponse),
		func(response *godwitv1.CreateMigrationResponse, version int64) { response.Migration.Version = version }, create)
}

// createdMessage answers a request for a migration, without the version.
func createdMessage(m migration.Migration) *godwitv1.CreateMigrationResponse {
	return &godwitv1.CreateMigrationResponse{Migration: migrationMessage(store.Entry[migration.Migration]{Value: m})}
}

// longestLimit bounds what a request may allow: what is longer is a mistake,
// and overflows in the end.
const longestLimit = 30 * 24 * time.Hour

// policyOf fills what a request leaves open with the defaults.
func policyOf(request *godwitv1.MigrationPolicy, copied fleet.Bytes) (migration.Policy, error) {
	policy, err := migration.DefaultPolicy(copied).Preset(migration.PresetName(request.GetPreset()))
	if err != nil {
		return policy, err
	}
	for _, limit := range []struct {
		what  string
		name  migration.PolicyName
		asked int64
		field *time.Duration
	}{
		{"the time to copy", migration.PolicyCopy, request.GetCopyLimitMs(), &policy.CopyMax},
		{"the time to switch", migration.PolicySwitch, request.GetSwitchLimitMs(), &policy.SwitchMax},
		{"the blackout", migration.PolicyBlackout, request.GetBlackoutMaxMs(), &policy.BlackoutMax},
	} {
		if limit.asked < 0 || limit.asked > longestLimit.Milliseconds() {
			return policy, &fleet.Error{
				Code: fleet.Invalid, Op: "check policy", Cause: fmt.Sprintf("%s must be between 1ms and %v", limit.what, longestLimit),
			}
		}
		if limit.asked != 0 {
			*limit.field = time.Duration(limit.asked) * time.Millisecond
			policy.Asked = append(policy.Asked, limit.name)
		}
	}
	if action := request.GetOnPredictedFailure(); action != "" {
		policy.Prediction.OnFailure = predict.Action(action)
		policy.Asked = append(policy.Asked, migration.PolicyPrediction)
	}
	if request != nil && request.ThrottleMax != nil {
		policy.ThrottleMax = int(request.GetThrottleMax())
		policy.Asked = append(policy.Asked, migration.PolicyThrottle)
	}
	if request.GetForce() {
		policy.Prediction.OnFailure, policy.Prediction.Forced = predict.GoOn, true
		policy.Asked = append(policy.Asked, migration.PolicyPrediction)
	}
	if request.GetBandwidthMax() != 0 {
		policy.BandwidthMax = fleet.BytesPerSecond(request.GetBandwidthMax())
		policy.Asked = append(policy.Asked, migration.PolicyBandwidth)
	}
	return policy, policy.Validate()
}

func (s *migrationService) Get(ctx context.Context, request *godwitv1.GetMigrationRequest) (*godwitv1.GetMigrationResponse, error) {
	entry, err := s.entry(ctx, "show", request.GetId())
	if err != nil {
		return nil, err
	}
	return &godwitv1.GetMigrationResponse{Migration: migrationMessage(entry)}, nil
}

func (s *migrationService) entry(ctx context.Context, op, id string) (store.Entry[migration.Migration], error) {
	return s.runs.newest(ctx, op, id)
}

func (s *migrationService) Cancel(ctx context.Context, request *godwitv1.CancelMigrationRequest) (*godwitv1.CancelMigrationResponse, error) {
	reason := request.GetReason()
	if reason == "" {
		reason = "no reason given"
	}
	if _, err := s.entry(ctx, "cancel", request.GetId()); err != nil {
		return nil, err
	}
	if err := s.runs.cancel(ctx, fleet.MigrationID(request.GetId()), request.GetVersion(), "operator", reason); err != nil {
		return nil, err
	}
	entry, err := s.entry(ctx, "cancel", request.GetId())
	if err != nil {
		return nil, err
	}
	return &godwitv1.CancelMigrationResponse{Migration: migrationMessage(entry)}, nil
}

// Return takes the operator's word that the target's host is off.
func (s *migrationService) Return(ctx context.Context, request *godwitv1.ReturnMigrationRequest) (*godwitv1.ReturnMigrationResponse, error) {
	entry, err := s.entry(ctx, "return", request.GetId())
	if err != nil {
		return nil, err
	}
	refusal := &fleet.Error{Op: "return", Subject: "migration " + request.GetId()}
	switch target := entry.Value.Target; {
	case request.GetHostIsOff() != string(target):
		refusal.Code, refusal.Cause = fleet.Invalid, fmt.Sprintf("its target is %s, not %q", target, request.GetHostIsOff())
		refusal.Hint = fmt.Sprintf("make sure that %s is off, and say so", target)
		return nil, refusal
	case s.runs.Up(target):
		refusal.Code, refusal.Cause = fleet.Conflict, fmt.Sprintf("%s is not off: its agent has a session", target)
		refusal.Hint = "what keeps it from running the VM is in the migration's cause, and in its agent's log; " +
			"or stop that agent, and make sure that the VM's QEMU there has ended"
		return nil, refusal
	}
	if err := s.mayBeUp(entry.Value.Target, refusal.Op, refusal.Subject); err != nil {
		return nil, err
	}
	event := migration.Event{Kind: migration.ReturnAsked, From: "operator", Detail: request.GetHostIsOff() + " is off"}
	if err := s.runs.ask(ctx, "return", entry.Value.ID, request.GetVersion(), event); err != nil {
		return nil, err
	}
	if entry, err = s.entry(ctx, "return", request.GetId()); err != nil {
		return nil, err
	}
	return &godwitv1.ReturnMigrationResponse{Migration: migrationMessage(entry)}, nil
}

func (s *migrationService) Watch(ctx context.Context, request *godwitv1.WatchMigrationRequest, stream *connect.ServerStream[godwitv1.WatchMigrationResponse]) error {
	entry, err := s.entry(ctx, "watch", request.GetId())
	if err != nil {
		return err
	}
	if entry.Value.State.Final() {
		return stream.Send(&godwitv1.WatchMigrationResponse{Migration: migrationMessage(entry)})
	}
	changed, stop := s.runs.Watch(entry.Value.ID)
	defer stop()
	for {
		if entry, err = s.entry(ctx, "watch", request.GetId()); err != nil {
			return err
		}
		if err := stream.Send(&godwitv1.WatchMigrationResponse{Migration: migrationMessage(entry)}); err != nil {
			return err
		}
		if entry.Value.State.Final() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// cancel posts the wish, if the record has the wanted version, and says why when
// it can't be.
func (r *reconciler) cancel(ctx context.Context, id fleet.MigrationID, wanted int64, who, reason string) error {
	return r.ask(ctx, "cancel", id, wanted, migration.Event{Kind: migration.CancelAsked, From: who, Detail: reason})
}

// ask posts a wish, if the record has the wanted version, and says why when it
// can't be.
func (r *reconciler) ask(ctx context.Context, op string, id fleet.MigrationID, wanted int64, event migration.Event) error {
	m, verdict, err := r.AdvanceIf(ctx, id, event, func(entry store.Entry[migration.Migration]) error {
		return checkVersion(op, "migration", entry, wanted)
	})
	if err == nil && verdict == migration.Refuse {
		err = migration.Refusal(m, event)
	}
	return err
}
