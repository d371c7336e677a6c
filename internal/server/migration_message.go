package server

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// migrationMessage shows a migration to the API.
func migrationMessage(entry store.Entry[migration.Migration]) *godwitv1.Migration {
	m := entry.Value
	message := &godwitv1.Migration{
		Id: string(m.ID), Vm: string(m.VM), Source: string(m.Source), Target: string(m.Target), Epoch: uint64(m.Epoch),
		State: string(m.State), Cause: m.Cause, Reason: m.Reason, Remedies: m.Remedies, Version: entry.Version,
		Created: timestamp(m.Created), Ended: timestamp(m.Ended),
		Policy: &godwitv1.MigrationPolicy{
			CopyLimitMs: m.Policy.CopyMax.Milliseconds(), SwitchLimitMs: m.Policy.SwitchMax.Milliseconds(),
			BandwidthMax: uint64(m.Policy.BandwidthMax), BlackoutMaxMs: m.Policy.BlackoutMax.Milliseconds(),
			OnPredictedFailure: string(m.Policy.Prediction.OnFailure), Force: m.Policy.Prediction.Forced, ThrottleMax: new(int32(m.Policy.ThrottleMax)), Preset: string(m.Policy.From),
		},
		Connections: uint32(max(1, m.Connections)), ConnectionsWhy: m.ConnectionsWhy,
		Progress: progressMessage(m.Progress), Outcome: outcomeMessage(m.Outcome()),
	}
	addDecisions(message, m)
	addStory(message, m)
	addComparison(message, m)
	addForeseen(message, m)
	for _, refused := range m.Refused {
		message.Refused = append(message.Refused, &godwitv1.RefusedHost{Host: string(refused.Host), Why: refused.Why})
	}
	for _, pass := range m.Passes {
		message.Passes = append(message.Passes, &godwitv1.Pass{
			Number: int32(pass.Number), At: timestamp(pass.At), SentBytes: uint64(pass.Sent), RemainingBytes: uint64(pass.Remaining),
		})
	}
	return message
}

func progressMessage(p migration.Progress) *godwitv1.Progress {
	if p.At.IsZero() {
		return nil
	}
	return &godwitv1.Progress{
		Pass: int32(p.Pass), SentBytes: uint64(p.Sent), RemainingBytes: uint64(p.Remaining), TotalBytes: uint64(p.Total),
		DirtyBytesPerSecond: float64(p.DirtyRate), BandwidthBytesPerSecond: float64(p.Bandwidth),
		EtaMs: p.ETA().Milliseconds(), At: timestamp(p.At), Heard: timestamp(p.Heard),
		DiskCopiedBytes: uint64(p.DiskCopied), DiskTotalBytes: uint64(p.DiskTotal), DiskBytesPerSecond: float64(p.DiskRate),
		ThrottlePercent: int32(p.Throttle),
	}
}

func outcomeMessage(out migration.Outcome) *godwitv1.Outcome {
	message := &godwitv1.Outcome{
		TotalMs: milliseconds(out.Total), SettledMs: milliseconds(out.Settled), Passes: int32(out.Passes), Bytes: uint64(out.Bytes),
		BlackoutMs: milliseconds(out.Blackout), OwnMs: milliseconds(out.Own),
		FramesDrained: int64(out.FramesDrained), FramesReturned: int64(out.FramesReturned), StoppedBy: out.StoppedBy,
	}
	if out.Apart != 0 {
		message.ClocksApartMs = new(milliseconds(out.Apart))
	}
	if out.DrainError != "" {
		message.DrainError = &out.DrainError
	}
	if out.ReturnError != "" {
		message.ReturnError = &out.ReturnError
	}
	for _, phase := range out.Phases {
		message.Phases = append(message.Phases, &godwitv1.BlackoutPhase{Name: phase.Name, Ms: milliseconds(phase.Time)})
	}
	return message
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func timestamp(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at)
}
