package pledge

import (
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
)

// SourceFailed says that a source can't do what it was told; gone that its
// instance has ended.
func SourceFailed(err error, gone bool) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceFailed{SourceFailed: &godwitv1.SourceFailed{
		Code: string(fleet.CodeOf(err)), Cause: err.Error(), Hint: fleet.HintOf(err), Gone: gone,
	}}}
}

// TargetFailed says the same of a target.
func TargetFailed(err error, gone bool) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetFailed{TargetFailed: &godwitv1.TargetFailed{
		Code: string(fleet.CodeOf(err)), Cause: err.Error(), Hint: fleet.HintOf(err), Gone: gone,
	}}}
}

// TargetGone says that a target's instance has ended, and whether it may have run.
func TargetGone(err error, mayHaveRun bool) *godwitv1.Report {
	report := TargetFailed(err, true)
	report.GetTargetFailed().Unrun = !mayHaveRun
	return report
}

// SourceResumed answers ResumeSource.
func SourceResumed() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceResumed{SourceResumed: &godwitv1.SourceResumed{}}}
}

// SourceRetired answers RetireSource.
func SourceRetired() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceRetired{SourceRetired: &godwitv1.SourceRetired{}}}
}

// SourceReleased answers ReleaseSource.
func SourceReleased() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceReleased{SourceReleased: &godwitv1.SourceReleased{}}}
}

// SourceRanOn says that a source runs by its target's refusal.
func SourceRanOn(cause string) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_SourceRanOn{SourceRanOn: &godwitv1.SourceRanOn{Cause: cause}}}
}

// TargetRefused says that a target has given up for good.
func TargetRefused(cause string) *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetRefused{TargetRefused: &godwitv1.TargetRefused{Cause: cause}}}
}

// TargetFinished answers FinishTarget.
func TargetFinished() *godwitv1.Report {
	return &godwitv1.Report{Event: &godwitv1.Report_TargetFinished{TargetFinished: &godwitv1.TargetFinished{}}}
}

// TargetReleased answers ReleaseTarget; failed is why frames did not return.
func TargetReleased(frames int, failed error) *godwitv1.Report {
	released := &godwitv1.TargetReleased{FramesReturned: int64(frames)}
	if failed != nil {
		released.ReturnError = failed.Error()
	}
	return &godwitv1.Report{Event: &godwitv1.Report_TargetReleased{TargetReleased: released}}
}
