package migration

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"godwit.dev/godwit/internal/fleet"
)

// Every remedy helps in the state in which it is given, whatever led to it.
func TestRemediesHelp(t *testing.T) {
	given := map[string]bool{}
	check := func(how string, m Migration) {
		if (m.State == NeedsOperator || m.awaitsImage()) != (len(m.Remedies) > 0) {
			t.Errorf("%s: %s has remedies %q", how, m.State, m.Remedies)
		}
		for _, remedy := range m.Remedies {
			given[remedy] = true
			if flaw := flawOf(m, remedy); flaw != "" {
				t.Errorf("%s: %q: %s", how, remedy, flaw)
			}
		}
	}
	walk(t, func(m, next Migration, kind EventKind) {
		check(fmt.Sprintf("%s in %s", kind, m.State), next)
	})
	for _, state := range States() {
		m := Abandon(sample(t, state), "the store was restored", epochZero)
		check("restored in "+string(state), m)
		for _, kind := range Events() {
			next, _, _ := Step(m, event(m, kind))
			check(string(kind)+" when it is abandoned", next)
		}
	}
	if len(given) < 8 {
		t.Errorf("only these are given: %v", given)
	}
}

// flawOf says why a remedy does not help, "" if it does.
func flawOf(m Migration, remedy string) string {
	remedy, _, _ = strings.Cut(remedy, "  #")
	host := fleet.HostName("h1")
	if strings.Contains(remedy, "h2") {
		host = m.Target
	}
	switch {
	case m.awaitsImage() && !strings.HasPrefix(remedy, "godwit"):
		return flawOfWait(m, remedy)
	case remedy == "godwit vm start web1":
		return flawUnless(m.Class(StartVM) == Allow && m.Down(), "nothing is started while somebody may have the VM")
	case remedy == "godwit vm show web1":
		return flawUnless(m.Class(Read) == Allow && m.Abandoned, "it shows nothing that is not known")
	case remedy == fmt.Sprintf("godwit migration return m-1 --host-is-off %s", m.Target):
		next, _, verdict := Step(m, event(m, ReturnAsked))
		return flawUnless(verdict == Act && next.Owner().Host == m.Source && next.isPending(ResumeSource), "the source does not get the VM back")
	case remedy == fmt.Sprintf("godwit host lost %s --is-off", host):
		return flawUnless(m.Class(ChangeHost) == Allow, "the host can't be given up") + leadsOn(m, hostEvent(m, HostLost, host))
	case remedy == fmt.Sprintf("start the agent on %s, if it is down: it will go on by itself", host):
		awaited := func(effect Effect) bool { return effect.Host == host }
		return flawUnless(slices.ContainsFunc(m.Pending, awaited), "nothing waits for it")
	case remedy == fmt.Sprintf("end QEMU of web1 on %s, if the agent there is up and fails: web1 has failed then", host):
		return leadsOn(m, hostEvent(m, endOf(m, host), host))
	}
	return "nobody knows what that is"
}

// flawOfWait is flawOf of what makes the lock of an image free.
func flawOfWait(m Migration, remedy string) string {
	switch remedy {
	case "start the agent on h1, if it is down: it will go on by itself": // it asks the target to give up
		next, _, verdict := Step(m, event(m, TargetRefused))
		return flawUnless(verdict == Act && next.Owner().Host == m.Source, "the source does not go on")
	case "end QEMU of web1 on h1, if the agent there can't be started: h2 runs web1 then":
		return flawUnless(m.isPending(RunTarget) && !m.SourceGone, "the target does not run")
	case "end what else has the image of disk root of web1 open, on whichever host":
		return flawUnless(m.isPending(RunTarget) && m.SourceGone, "the source may have it")
	}
	return "nobody knows what that is"
}

func flawUnless(holds bool, flaw string) string {
	if holds {
		return ""
	}
	return flaw
}

func endOf(m Migration, host fleet.HostName) EventKind {
	if host == m.Target {
		return TargetFailed
	}
	return SourceFailed
}

func hostEvent(m Migration, kind EventKind, host fleet.HostName) Event {
	e := event(m, kind)
	e.From, e.Gone = string(host), true
	return e
}

// leadsOn: the VM has no instance by the event, or it is known next what helps.
func leadsOn(m Migration, e Event) string {
	next, _, verdict := Step(m, e)
	switch {
	case verdict != Act:
		return fmt.Sprintf("it is %s", verdict)
	case next.State == NeedsOperator && slices.Equal(next.Remedies, m.Remedies):
		return "it is as before"
	case next.State != NeedsOperator && !next.SourceGone:
		return "the VM has not failed"
	}
	return ""
}
