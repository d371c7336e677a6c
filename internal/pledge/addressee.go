package pledge

import (
	"cmp"
	"fmt"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// Addressee is the instance that a migration's command is for.
type Addressee struct {
	VM    fleet.VMName
	Epoch fleet.Epoch
	// Absent is what is answered when there is no such instance.
	Absent *godwitv1.Report
	// Foreign is what is answered when what is there takes part in another migration.
	Foreign *godwitv1.Report

	migration string
	others    func(Kept) bool // those of no, or of another migration, that it is for all the same
}

// Is tells whether an instance that is there is the one that the command was meant
// for: it may take part in another migration since.
func (a Addressee) Is(kept Kept) bool { return kept.Migration == a.migration || a.others(kept) }

// AddresseeOf reads a command that follows the preparation; false for any other.
// has tells what is on this host.
func AddresseeOf(command *godwitv1.Command, host fleet.HostName, has func(fleet.VMName, fleet.Epoch) bool) (Addressee, bool) {
	epoch := fleet.Epoch(command.GetEpoch())
	gone := fmt.Errorf("its instance is not on %s", host)
	foreign := fmt.Errorf("its instance on %s is not of migration %s", host, command.GetSubject())
	source := func(vm string, absent *godwitv1.Report, others func(Kept) bool) (Addressee, bool) {
		return Addressee{fleet.VMName(vm), epoch, absent, SourceFailed(foreign, false), command.GetSubject(), others}, true
	}
	target := func(vm string, absent, foreign *godwitv1.Report, others func(Kept) bool) (Addressee, bool) { // its epoch is one more than the migration's
		return Addressee{fleet.VMName(vm), epoch + 1, absent, foreign, command.GetSubject(), others}, true
	}
	switch op := command.GetOp().(type) {
	case *godwitv1.Command_StartCopy:
		return source(op.StartCopy.GetVm(), SourceFailed(gone, true), Kept.free)
	case *godwitv1.Command_ResumeSource:
		vm, later := op.ResumeSource.GetVm(), fleet.Epoch(op.ResumeSource.GetNewEpoch())
		if later > epoch && has(fleet.VMName(vm), later) {
			epoch = later // it was renumbered, and nobody heard the answer
		}
		return source(vm, SourceFailed(gone, true), Kept.free)
	case *godwitv1.Command_RetireSource:
		return source(op.RetireSource.GetVm(), SourceRetired(), Kept.remains)
	case *godwitv1.Command_ReleaseSource:
		return source(op.ReleaseSource.GetVm(), SourceReleased(), Kept.remains)
	case *godwitv1.Command_RunTarget:
		return target(op.RunTarget.GetVm(), TargetFailed(gone, true), TargetFailed(foreign, false), Kept.ran)
	case *godwitv1.Command_FinishTarget: // finished, and perhaps the next one's source
		return target(op.FinishTarget.GetVm(), TargetFinished(), TargetFinished(), Kept.unused)
	case *godwitv1.Command_ReleaseTarget: // released, and another one's target
		return target(op.ReleaseTarget.GetVm(), TargetReleased(0, nil), TargetReleased(0, nil), Kept.unused)
	}
	return Addressee{}, false
}

// MeantFor tells whether a command is for an instance of that VM, as far as both
// are known: another VM may have had its name.
func MeantFor(command *godwitv1.Command, uid fleet.InstanceUID) bool {
	meant := cmp.Or(command.GetUid(), command.GetForgetInstance().GetUid(),
		command.GetStartInstance().GetInstance().GetUid(), command.GetPrepareTarget().GetInstance().GetUid())
	return meant == "" || uid == "" || meant == string(uid)
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
