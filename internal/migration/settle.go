package migration

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

func targetRuns(m *Migration, event Event) {
	m.State, m.Ended = Settling, time.Time{}
	m.TargetRuns, m.ImageWait = true, nil
	m.TargetMarks = new(event.Target)
	m.Cause = ""
	m.want(RetireSource, m.Source)
	m.setTimer(event.At, m.Policy.SettleMax, "the source or another host did not answer in time")
	settle(m, event)
}

func addressesKnown(m *Migration, event Event) {
	if !m.AddressesKnown { // once known is enough
		m.AddressesKnown = true
		m.Unaware = cmp.Or(m.Unaware, event.Detail)
	}
	settle(m, event)
}

// settle moves on when the last thing that Settling waited for has come: first
// to the grace time, then to the end.
func settle(m *Migration, event Event) {
	switch {
	case m.isPending(RetireSource) || m.isPending(ReleaseSource) || m.isPending(FinishTarget):
	case m.Released:
		m.succeed(event)
	case m.TargetRuns && m.AddressesKnown && !m.InGrace:
		m.InGrace = true
		m.setTimer(event.At, m.Policy.Grace, "the grace time is over")
	}
}

// settleTimer ends the forwarding first, also if not all have answered, and gives
// that a time of its own.
func settleTimer(m *Migration, event Event) {
	switch {
	case !m.TargetRuns:
		m.needOperator(event, fmt.Sprintf("%s has committed to %s, which does not say that it runs it: %s", m.VM, m.Target, cmp.Or(m.Cause, m.Timer.What)))
	case !m.Released:
		m.release()
		m.setTimer(event.At, m.Policy.SettleMax, "a host did not clean up in time")
	default:
		m.succeed(event)
		if m.isPending(ReleaseSource) {
			m.want(FinishTarget, m.Target) // no longer after the source
		}
	}
}

// succeed ends it; its cause is what is not done by then.
func (m *Migration) succeed(event Event) {
	if !m.AddressesKnown {
		m.Unaware = unaware
	}
	m.Cause = sentences(m.Cause, m.Unaware, m.leftovers())
	m.end(Succeeded, event)
}

const unaware = "not every host has said in time that it knows the new address"

// sentences joins those that say something.
func sentences(all ...string) string {
	return strings.Join(slices.DeleteFunc(all, func(s string) bool { return s == "" }), "; ")
}

// release ends the forwarding. The target closes its end of the tunnel only
// when the source has: senders on the source's own host use it to the last.
func (m *Migration) release() {
	m.Released = true
	m.want(ReleaseSource, m.Source)
}

func sourceReleased(m *Migration, event Event) {
	if !m.AddressesKnown { // what they hear later is too late
		m.Unaware = unaware
	}
	m.want(FinishTarget, m.Target)
	m.setTimer(event.At, m.Policy.SettleMax, "the target did not clean up in time")
}

// leftovers says which hosts still have something to clean up, if any has. StartCopy
// waits for a measurement only.
func (m *Migration) leftovers() string {
	var hosts []string
	for _, effect := range m.Pending {
		if effect.Kind != StartCopy && !slices.Contains(hosts, string(effect.Host)) {
			hosts = append(hosts, string(effect.Host))
		}
	}
	if len(hosts) == 0 {
		return ""
	}
	return strings.Join(hosts, " and ") + " did not answer in time and will clean up on return"
}

// noteSourceGone: what it has not measured by then nobody will.
func noteSourceGone(m *Migration, event Event) {
	if event.Gone {
		m.SourceGone = true
		m.drop(StartCopy)
	}
}

func targetFailedAfterCommit(m *Migration, event Event) {
	m.Cause = event.Detail
	m.noteImageWait(event)
	switch {
	case !event.Gone:
	case m.TargetRuns: // then the VM has ended, as any may; what is left to do is the same
	case event.Unrun && m.AwaitsTarget():
		takeBack(m, event)
	default:
		m.lose(event, fmt.Sprintf("the instance on %s ended after the commit: %s", m.Target, event.Detail))
	}
}

// lose: the VM has no instance any more. What the source has is older than what
// the target may have done, so it must not run on.
func (m *Migration) lose(event Event, cause string) {
	m.drop(RunTarget, StartCopy, RetireSource, FinishTarget)
	m.TargetGone, m.ImageWait = true, nil
	m.want(ReleaseTarget, m.Target)
	if !m.Released {
		m.want(ReleaseSource, m.Source)
	}
	m.needOperator(event, cause)
}
