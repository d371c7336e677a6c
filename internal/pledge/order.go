package pledge

import (
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Order is for which instance a migration's command is.
type Order struct {
	VM    fleet.VMName
	Epoch fleet.Epoch
	// Absent is what is answered when there is no such instance.
	Absent *godwitv1.Report
	// Foreign is what is answered when the instance is not of the command's
	// migration; nil: it is for any.
	Foreign *godwitv1.Report
}

// OrderOf reads a command that follows the preparation, of which has tells what
// is on this host; false for any other.
func OrderOf(command *godwitv1.Command, host fleet.HostName, has func(fleet.VMName, fleet.Epoch) bool) (Order, bool) {
	epoch := fleet.Epoch(command.GetEpoch())
	gone := fmt.Errorf("its instance is not on %s", host)
	source := func(vm string, absent *godwitv1.Report) (Order, bool) {
		return Order{VM: fleet.VMName(vm), Epoch: epoch, Absent: absent}, true
	}
	target := func(vm string, absent, foreign *godwitv1.Report) (Order, bool) { // its epoch is one more than the migration's
		return Order{VM: fleet.VMName(vm), Epoch: epoch + 1, Absent: absent, Foreign: foreign}, true
	}
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_StartCopy:
		return source(op.StartCopy.GetVm(), SourceFailed(gone, true))
	case *godwitv1.Command_ResumeSource:
		vm, later := op.ResumeSource.GetVm(), fleet.Epoch(op.ResumeSource.GetNewEpoch())
		if later > epoch && has(fleet.VMName(vm), later) {
			epoch = later // it was renumbered, and nobody heard the answer
		}
		return source(vm, SourceFailed(gone, true))
	case *godwitv1.Command_RetireSource:
		return source(op.RetireSource.GetVm(), SourceRetired())
	case *godwitv1.Command_ReleaseSource:
		return source(op.ReleaseSource.GetVm(), SourceReleased())
	case *godwitv1.Command_RunTarget:
		return target(op.RunTarget.GetVm(), TargetFailed(gone, true), nil)
	case *godwitv1.Command_FinishTarget: // finished, and perhaps the next one's source
		return target(op.FinishTarget.GetVm(), TargetFinished(), TargetFinished())
	case *godwitv1.Command_ReleaseTarget: // released, and another one's target
		return target(op.ReleaseTarget.GetVm(), TargetReleased(0, nil), TargetReleased(0, nil))
	}
	return Order{}, false
}

// Answering makes a report the answer to a command. One that failed may be tried
// again by the same sequence, so it answers nothing.
func Answering(command *godwitv1.Command, report *godwitv1.Report) *godwitv1.Report {
	report.Subject, report.Epoch, report.Sequence = command.GetSubject(), command.GetEpoch(), command.GetSequence()
	if Failed(report) {
		report.Sequence = 0
	}
	return report
}

// Failed reports whether it says that something failed.
func Failed(report *godwitv1.Report) bool {
	return report.GetSourceFailed() != nil || report.GetTargetFailed() != nil
}
