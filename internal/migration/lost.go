package migration

import (
	"fmt"

	"godwit.dev/godwit/internal/fleet"
)

// lost decides that the host of one side is off for good: as the end of the
// instance there, which is what its agent would say. Nobody is told twice, and
// what is over stays as it is.
func lost(source, target func(*Migration, Event)) cell {
	return cell{
		verdict: Act, when: (*Migration).canLose, otherwise: Late,
		apply: func(m *Migration, event Event) {
			event.Gone = true
			if event.From == string(m.Source) {
				event.Kind, m.SourceLost = SourceFailed, true
				source(m, event)
				m.SourceGone = true
				return
			}
			event.Kind, m.TargetLost = TargetFailed, true
			target(m, event)
		},
	}
}

// canLose reports whether it is news that the event's host is lost, and matters.
func (m *Migration) canLose(event Event) bool {
	host := fleet.HostName(event.From)
	return !m.Over() && m.Involves(host) && !m.isLost(host)
}

func (m *Migration) isLost(host fleet.HostName) bool {
	return host == m.Source && m.SourceLost || host == m.Target && m.TargetLost
}

// targetLost: nobody can say whether a target that had the right to run has used
// it. So the source, whose memory is then older, must not run on; but it may do so
// already, if the target had refused before, and then it has the VM.
func targetLost(m *Migration, event Event) {
	if m.Owner().Host == m.Target && !m.TargetGone {
		m.LostUnheard = m.AwaitsTarget()
		m.lose(event, fmt.Sprintf("after the commit to %s: %s", m.Target, event.Detail))
	}
}

// doneByLoss maps what has come about by the end of the host that was to do it,
// to its answer. Whatever else a host was to do has failed with it.
var doneByLoss = map[EffectKind]EventKind{
	RetireSource:  SourceRetired,
	ReleaseSource: SourceReleased,
	FinishTarget:  TargetFinished,
	ReleaseTarget: TargetReleased,
}

// answerForLost answers for a host that is off for good, so that nobody waits for
// it. The answers are decided by the table, as a host's own are.
func (m *Migration) answerForLost(event Event) {
	for {
		effect, found := m.awaitsLost()
		if !found {
			return
		}
		m.drop(effect.Kind)
		answer := Event{Kind: doneByLoss[effect.Kind], At: event.At, From: string(effect.Host)}
		if effect.ReturnFrames {
			answer.Detail = fmt.Sprintf("%s is lost", effect.Host)
		}
		if decided := table[m.State][answer.Kind]; decided.verdict == Act {
			decided.apply(m, answer)
		}
	}
}

// awaitsLost gives the next effect that waits for a host that is lost.
func (m *Migration) awaitsLost() (effect Effect, found bool) {
	for _, effect := range m.Pending {
		if m.isLost(effect.Host) {
			return effect, true
		}
	}
	return Effect{}, false
}
