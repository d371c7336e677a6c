package reconcile

import (
	"context"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/predict"
	"godwit.dev/godwit/internal/wire"
)

// Report takes what a host says of a migration. Only the hosts of the
// migration are heard, each on its own side of it.
func (r *Reconciler) Report(ctx context.Context, host fleet.HostName, report *godwitv1.Report) error {
	event, known := EventOf(report)
	if !known {
		return UnknownReport(host, report)
	}
	id := fleet.MigrationID(report.GetSubject())
	event.Answers, event.At = report.GetSequence(), r.Runtime.Now()
	return r.postFrom(ctx, host, id, event)
}

// UnknownReport is what is wrong with a report of no known kind.
func UnknownReport(host fleet.HostName, report *godwitv1.Report) error {
	return &fleet.Error{
		Code: fleet.Invalid, Op: "read report", Subject: "host " + string(host),
		Cause: fmt.Sprintf("what it says of %s is of no kind that this server knows", report.GetSubject()),
	}
}

// heard gives the migration that a host speaks of. Denied when an event of the
// kind is not the host's to report; any other error is the store's and says
// nothing of the host's right.
func (r *Reconciler) heard(ctx context.Context, id fleet.MigrationID, host fleet.HostName, kind migration.EventKind) (migration.Migration, error) {
	denied := func(cause string) error {
		return &fleet.Error{Code: fleet.Denied, Op: string(kind), Subject: "migration " + wire.Bounded(string(id)), Cause: cause}
	}
	if fleet.CheckName(string(id)) != nil {
		return migration.Migration{}, denied("that is no migration's id")
	}
	one := r.runOf(id)
	one.mu.Lock()
	defer one.mu.Unlock()
	if err := r.load(ctx, one, id); fleet.CodeOf(err) == fleet.NotFound {
		return migration.Migration{}, denied("there is no migration of this id")
	} else if err != nil {
		return migration.Migration{}, err
	}
	r.dropIfOver(one)
	m := one.entry.Value
	switch {
	case ofTarget(kind) && host != m.Target:
		return m, denied(string(host) + " is not its target")
	case !ofTarget(kind) && host != m.Source:
		return m, denied(string(host) + " is not its source")
	}
	return m, nil
}

func ofTarget(kind migration.EventKind) bool {
	switch kind {
	case migration.TargetPrepared, migration.TargetFailed, migration.TargetLoaded,
		migration.TargetRunning, migration.TargetCompared, migration.TargetFinished, migration.TargetReleased, migration.TargetRefused:
		return true
	}
	return false
}

// EventOf reads a report. The instant of the event is the server's: deadlines
// are measured by one clock.
func EventOf(report *godwitv1.Report) (event migration.Event, known bool) {
	switch said := report.GetEvent().(type) {
	case *godwitv1.Report_TargetPrepared:
		event.Kind, event.Port = migration.TargetPrepared, uint16(said.TargetPrepared.GetPort())
		event.DiskPort = uint16(said.TargetPrepared.GetDiskPort())
		event.QEMU, event.Machine = wire.QEMUOf(said.TargetPrepared), wire.MachineOf(said.TargetPrepared.GetSourceMachine())
	case *godwitv1.Report_CopyProgress:
		event.Kind, event.Progress = migration.CopyProgressed, progressOf(report.GetAt(), said.CopyProgress)
	case *godwitv1.Report_SourceStopped:
		event.Kind, event.Detail = migration.SourceStopped, stopDetail(said.SourceStopped)
	case *godwitv1.Report_SwitchMeasured:
		event.Kind, event.Source = migration.SwitchMeasured, sourceMarksOf(said.SwitchMeasured)
		event.Detail = event.Source.DrainError
	case *godwitv1.Report_SourceResumed:
		event.Kind = migration.SourceResumed
	case *godwitv1.Report_TargetReleased:
		event.Kind, event.Frames = migration.TargetReleased, int(said.TargetReleased.GetFramesReturned())
		event.Detail = wire.Bounded(said.TargetReleased.GetReturnError())
	case *godwitv1.Report_TargetRunning:
		event.Kind, event.Target = migration.TargetRunning, targetMarksOf(said.TargetRunning.GetMarks())
	case *godwitv1.Report_TargetCompared:
		event.Kind, event.Machine = migration.TargetCompared, wire.MachineOf(said.TargetCompared.GetMachine())
	case *godwitv1.Report_SourceRetired:
		event.Kind = migration.SourceRetired
	case *godwitv1.Report_SourceReleased:
		event.Kind = migration.SourceReleased
	case *godwitv1.Report_TargetFinished:
		event.Kind = migration.TargetFinished
	case *godwitv1.Report_SourceFailed:
		event.Kind, event.Detail, event.Gone = migration.SourceFailed, failureOf(said.SourceFailed), said.SourceFailed.GetGone()
	case *godwitv1.Report_TargetFailed:
		event.Kind, event.Detail, event.Gone = migration.TargetFailed, failureOf(said.TargetFailed), said.TargetFailed.GetGone()
		event.Unrun, event.Locked = said.TargetFailed.GetUnrun(), wire.Bounded(said.TargetFailed.GetLockedDisk())
	case *godwitv1.Report_TargetRefused:
		event.Kind, event.Detail = migration.TargetRefused, wire.Bounded(said.TargetRefused.GetCause())
	case *godwitv1.Report_SourceRanOn:
		event.Kind, event.Detail = migration.SourceRanOn, wire.Bounded(said.SourceRanOn.GetCause())
	default:
		return event, false
	}
	return event, true
}

// failureOf is what a host says of a failure, and what it says can be done about it.
func failureOf(said interface {
	GetCause() string
	GetHint() string
}) string {
	if said.GetHint() == "" {
		return wire.Bounded(said.GetCause())
	}
	return wire.Bounded(said.GetCause()) + "; " + wire.Bounded(said.GetHint())
}

// maxElapsed is more than any copy may take.
const maxElapsed = 60 * 24 * time.Hour

func progressOf(at *timestamppb.Timestamp, said *godwitv1.CopyProgress) migration.Progress {
	return migration.Progress{
		At: wire.TimeOf(at), Pass: int(said.GetPass()), PassBegins: said.GetPassBegins(),
		Sent: fleet.Bytes(said.GetSentBytes()), Remaining: fleet.Bytes(said.GetRemainingBytes()), Total: fleet.Bytes(said.GetTotalBytes()),
		DirtyRate: rateOf(said.GetDirtyBytesPerSecond()), Bandwidth: rateOf(said.GetBandwidthBytesPerSecond()),
		DiskCopied: fleet.Bytes(said.GetDiskCopiedBytes()), DiskTotal: fleet.Bytes(said.GetDiskTotalBytes()), DiskRate: rateOf(said.GetDiskBytesPerSecond()),
		Elapsed:  time.Duration(min(max(said.GetElapsedUs(), 0), maxElapsed.Microseconds())) * time.Microsecond,
		Throttle: int(min(max(said.GetThrottlePercent(), 0), predict.MaxThrottle)),
	}
}

// rateOf gives zero for what is no rate, and has no form in a record.
func rateOf(bytesPerSecond float64) fleet.BytesPerSecond {
	if math.IsNaN(bytesPerSecond) || math.IsInf(bytesPerSecond, 0) || bytesPerSecond < 0 {
		return 0
	}
	return fleet.BytesPerSecond(bytesPerSecond)
}

func sourceMarksOf(said *godwitv1.SwitchMeasured) migration.SourceMarks {
	marks := said.GetMarks()
	return migration.SourceMarks{
		GateFlipped: wire.TimeOf(marks.GetGateFlipped()), Stopped: wire.TimeOf(marks.GetStopped()),
		PreSwitchover: wire.TimeOf(marks.GetPreSwitchover()), Continued: wire.TimeOf(marks.GetContinued()),
		Drained: wire.TimeOf(marks.GetDrained()), Completed: wire.TimeOf(marks.GetCompleted()),
		FramesDrained: int(said.GetFramesDrained()), DrainError: wire.Bounded(said.GetDrainError()), StoppedBy: wire.Bounded(said.GetStoppedBy()),
		Sent: fleet.Bytes(said.GetSentBytes()), Passes: int(said.GetPasses()),
	}
}

func targetMarksOf(marks *godwitv1.TargetMarks) migration.TargetMarks {
	return migration.TargetMarks{
		Loaded: wire.TimeOf(marks.GetLoaded()), Asked: wire.TimeOf(marks.GetAsked()),
		Answered: wire.TimeOf(marks.GetAnswered()), Resumed: wire.TimeOf(marks.GetResumed()),
	}
}
