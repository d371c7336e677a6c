package explain

import (
	"fmt"
	"strings"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// decisions lists what was decided at the request.
func decisions(m *godwitv1.Migration) []Fact {
	facts := []Fact{{"Reason", m.GetReason()}, {"Target", target(m)}}
	for _, other := range m.GetChoice().GetOthers() {
		facts = append(facts, Fact{"Not taken", fmt.Sprintf("%s, which fitted but scored lower: %s", other.GetHost(), other.GetWhy())})
	}
	for _, refused := range m.GetRefused() {
		if refused.GetHost() != m.GetSource() { // that it was there already is known
			facts = append(facts, Fact{"Refused", refused.GetHost() + ": " + strings.Join(refused.GetWhy(), "; ")})
		}
	}
	if more := m.GetChoice().GetUnlisted(); more > 0 {
		facts = append(facts, Fact{"Not listed", fmt.Sprintf("%d more hosts that were looked at", more)})
	}
	facts = append(facts, emulators(m)...)
	if n := m.GetConnections(); n > 0 {
		facts = append(facts, Fact{"Connections", with(fmt.Sprint(n), ": ", m.GetConnectionsWhy())})
	}
	if m.GetUnheld() {
		facts = append(facts, Fact{"Commit", fmt.Sprintf("waits until %s has sent everything, since its QEMU may run the guest on by itself before", m.GetSource())})
	}
	for _, limit := range m.GetLimits() {
		facts = append(facts, limitFact(limit))
	}
	return append(facts, foretold(m.GetForeseen())...)
}

// foretold tells the forecast before the copy and the newest one.
func foretold(seen *godwitv1.Foreseen) (facts []Fact) {
	if seen.GetUnmeasured() != "" {
		facts = append(facts, Fact{"Forecast", "the guest was not measured: " + seen.GetUnmeasured()})
	}
	list := seen.GetForecasts()
	for i, f := range list {
		if i > 0 && i < len(list)-1 {
			continue
		}
		when := "before the copy: "
		if f.GetPass() > 0 {
			when = fmt.Sprintf("in pass %d: ", f.GetPass())
		}
		text := f.GetReason()
		if f.GetKnown() {
			text = fmt.Sprintf("ends within its limits with %.0f %%, after %.1f s and with a blackout of %.0f ms; ",
				100*f.GetProbability(), f.GetTotalMs().GetExpected()/1000, f.GetBlackoutMs().GetExpected()) + text
		}
		facts = append(facts, Fact{"Forecast", when + text})
	}
	return facts
}

// emulators names the QEMUs of both instances, as far as they are known.
func emulators(m *godwitv1.Migration) (facts []Fact) {
	var known []string
	for _, one := range []struct{ version, host string }{{m.GetSourceQemu(), m.GetSource()}, {m.GetTargetQemu(), m.GetTarget()}} {
		if one.version != "" {
			known = append(known, one.version+" on "+one.host)
		}
	}
	if len(known) == 0 {
		return nil
	}
	return []Fact{{"QEMU", strings.Join(known, ", ")}}
}

func target(m *godwitv1.Migration) string {
	choice := m.GetChoice()
	if choice.GetNamed() {
		return with(m.GetTarget()+", named in the request, so that no other host was looked at", "; ", choice.GetWhy())
	}
	return with(m.GetTarget(), ", the best: ", choice.GetWhy())
}

// limitFact tells of a value of the policy and where it came from.
func limitFact(value *godwitv1.PolicyValue) Fact {
	within := short(time.Duration(value.GetMs()) * time.Millisecond)
	fact := Fact{What: value.GetName(), Text: within} // of a newer server
	switch migration.PolicyName(value.GetName()) {
	case migration.PolicyBandwidth:
		fact = Fact{"Bandwidth", "not limited"}
		if rate := value.GetBytesPerSecond(); rate > 0 {
			fact.Text = "at most " + fleet.BytesPerSecond(rate).String()
		}
	case migration.PolicyBlackout:
		fact = Fact{"Blackout", "expected to be at most " + within}
	case migration.PolicyPrepare:
		fact = Fact{"Prepare", "within " + within}
	case migration.PolicyCopy:
		fact = Fact{"Copy", "within " + within}
	case migration.PolicySwitch:
		fact = Fact{"Switch", "within " + within}
	case migration.PolicySettle:
		fact = Fact{"Settle", "within " + within + " for each step"}
	case migration.PolicyGrace:
		fact = Fact{"Grace", "forwarding goes on for " + within + " after all hosts know the new place"}
	case migration.PolicyRollback:
		fact = Fact{"Roll back", "within " + within + " for each step"}
	case migration.PolicyThrottle:
		fact = Fact{"Throttle", value.GetText()}
	case migration.PolicyPrediction:
		fact = Fact{"If it will fail", value.GetText()}
	}
	if from := value.GetFrom(); from != "" {
		fact.Text += " (" + strings.Replace(from, "the request", "by the request", 1) + ")"
	}
	return fact
}

// short leaves out the seconds of full minutes.
func short(d time.Duration) string {
	if text := d.String(); strings.HasSuffix(text, "m0s") {
		return strings.TrimSuffix(text, "0s")
	}
	return d.String()
}
