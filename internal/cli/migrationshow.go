package cli

import (
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/predict"
)

// summary tells how a migration ended and what was measured.
func (a *App) summary(w io.Writer, m *godwitv1.Migration) {
	s := sheet{w, a.style()}
	where := "runs on " + m.GetTarget()
	switch {
	case m.GetState() == "aborted" && m.GetSourceGone():
		where = "is down"
	case m.GetState() == "aborted":
		where = "runs on " + m.GetSource()
	}
	fmt.Fprintf(w, "migration %s %s", m.GetId(), s.style.state(m.GetState()))
	if m.GetState() != "needs-operator" {
		fmt.Fprintf(w, ": vm %s %s", m.GetVm(), where)
	}
	fmt.Fprintln(w)
	if m.GetOutcome() != nil {
		a.outcome(s, m.GetOutcome())
	}
}

func (a *App) outcome(s sheet, outcome *godwitv1.Outcome) {
	if outcome.GetTotalMs() > 0 {
		s.row("Total", millis(outcome.GetTotalMs())+", settled after "+millis(outcome.GetSettledMs()))
	}
	s.row("Sent", fmt.Sprintf("%s in %s", size(outcome.GetBytes()), plural(outcome.GetPasses(), "pass", "passes")))
	if outcome.GetBlackoutMs() > 0 {
		s.row("Blackout", millis(outcome.GetBlackoutMs())+", own share "+millis(outcome.GetOwnMs()))
	}
	width := keyWidth - 2
	for _, phase := range outcome.GetPhases() {
		width = max(width, len(phase.GetName())+2)
	}
	for _, phase := range outcome.GetPhases() {
		fmt.Fprintf(s.w, "  %-*s%s\n", width, phase.GetName(), millis(phase.GetMs()))
	}
	s.row("Clocks", apart(outcome.GetClocksApartMs()))
	s.row("Stopped by", outcome.GetStoppedBy())
	s.row("Frames", fmt.Sprintf("%d drained, %d returned", outcome.GetFramesDrained(), outcome.GetFramesReturned()))
	s.row("Not drained", outcome.GetDrainError())
	s.row("Not returned", outcome.GetReturnError())
}

// apart says whose clock is ahead, and that the figures are without that.
func apart(ms float64) string {
	by := time.Duration(math.Abs(ms) * float64(time.Millisecond)).Round(time.Millisecond)
	switch {
	case ms > 0:
		return fmt.Sprintf("the target's is %v ahead of the source's; taken out of the above", by)
	case ms < 0:
		return fmt.Sprintf("the target's is %v behind the source's; taken out of the above", by)
	}
	return ""
}

// compared says how the target's machine compared with the source's, if it ran.
func compared(m *godwitv1.Migration) string {
	differences := m.GetComparison().GetDifferences()
	switch {
	case !m.GetTargetRuns():
		return ""
	case m.GetComparison() == nil:
		return "not compared with the source's"
	case len(differences) == 0:
		return "as at the source"
	}
	var list []string
	for _, one := range differences {
		list = append(list, fmt.Sprintf("%s is %s, was %s", one.GetField(), one.GetTarget(), one.GetSource()))
	}
	return "differs: " + strings.Join(list, "; ")
}

func (a *App) showMigration(w io.Writer, m *godwitv1.Migration) {
	s := sheet{w, a.style()}
	s.row("Migration", m.GetId())
	s.row("VM", m.GetVm())
	s.row("From", fmt.Sprintf("%s, epoch %d", m.GetSource(), m.GetEpoch()))
	s.row("To", m.GetTarget())
	s.row("State", s.style.state(m.GetState()))
	s.row("Cause", m.GetCause())
	s.row("Waits for", a.imageWait(m))
	s.row("Machine", compared(m))
	s.row("Reason", m.GetReason())
	s.row("Requested", a.moment(m.GetCreated()))
	s.row("Ended", a.moment(m.GetEnded()))
	if !final(m) && m.GetDeadline() != nil {
		s.row("Deadline", m.GetDeadline().AsTime().Local().Format("15:04:05 MST"))
	}
	s.row("Version", number(m.GetVersion()))
	for i, remedy := range m.GetRemedies() {
		s.row(first(i, "Remedy"), shellLine(remedy))
	}
	if m.GetConnections() > 0 {
		s.row("Connections", number(int32(m.GetConnections())))
	}
	showPolicy(s, m.GetPolicy())

	if progress := m.GetProgress(); progress != nil && !final(m) {
		s.heading("Progress")
		s.row("Pass", number(progress.GetPass()))
		s.row("Amounts", amounts(progress))
		s.row("ETA", eta(progress))
	}
	if m.GetOutcome() != nil {
		s.heading("Outcome")
		a.outcome(s, m.GetOutcome())
	}
	a.showForeseen(s, m)
	showPasses(s, m)
	showRefused(s, m.GetRefused())
	showStory(s, m)
}

func showPolicy(s sheet, policy *godwitv1.MigrationPolicy) {
	bandwidth := "no limit"
	if policy.GetBandwidthMax() > 0 {
		bandwidth = rate(float64(policy.GetBandwidthMax()))
	}
	s.heading("Policy")
	s.row("Name", policy.GetPreset())
	s.row("Bandwidth", bandwidth)
	s.row("Blackout", "at most "+limit(policy.GetBlackoutMaxMs(), "300ms"))
	s.row("Copy limit", limit(policy.GetCopyLimitMs(), "by the VM's memory"))
	s.row("Switch limit", limit(policy.GetSwitchLimitMs(), "3s"))
	if policy.GetThrottleMax() > 0 {
		s.row("Throttle", fmt.Sprintf("up to %d %%", policy.GetThrottleMax()))
	}
	s.row("If it will fail", onPredictedFailure(policy))
}

// onPredictedFailure is "" of a migration of before there were forecasts.
func onPredictedFailure(policy *godwitv1.MigrationPolicy) string {
	switch {
	case policy.GetForce():
		return "go on: it is forced"
	case policy.GetOnPredictedFailure() == string(predict.Cancel):
		return "cancel it"
	case policy.GetOnPredictedFailure() == string(predict.GoOn):
		return "go on"
	}
	return policy.GetOnPredictedFailure()
}

func showPasses(s sheet, m *godwitv1.Migration) {
	if len(m.GetPasses()) == 0 {
		return
	}
	s.heading("Passes")
	t := table{}
	t.add("PASS", "BEGAN", "SENT BEFORE", "LEFT")
	for _, pass := range m.GetPasses() {
		t.add(number(pass.GetNumber()), sinceOf(pass.GetAt(), m.GetCreated()), size(pass.GetSentBytes()), size(pass.GetRemainingBytes()))
	}
	s.table(t)
}

func showRefused(s sheet, refused []*godwitv1.RefusedHost) {
	if len(refused) == 0 {
		return
	}
	s.heading("Refused hosts")
	for _, host := range refused {
		fmt.Fprintf(s.w, "  %s: %s\n", host.GetHost(), strings.Join(host.GetWhy(), "; "))
	}
}

func showStory(s sheet, m *godwitv1.Migration) {
	if len(m.GetStory()) == 0 {
		return
	}
	s.heading("Timeline")
	t := table{}
	t.add("AT", "WHO", "EVENT", "STATE", "DETAIL")
	for _, entry := range m.GetStory() {
		t.add(sinceOf(entry.GetAt(), m.GetCreated()), entry.GetWho(), entry.GetEvent(), entry.GetState(), entry.GetDetail())
	}
	s.table(t)
}

func plural(n int32, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
