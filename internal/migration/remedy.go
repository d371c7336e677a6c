package migration

import (
	"fmt"

	"godwit.dev/godwit/internal/fleet"
)

// remedies are what helps in this state, and is not refused in it; nil if nothing
// is needed.
func (m *Migration) remedies() []string {
	switch {
	case m.awaitsImage() && !m.Abandoned:
		return m.imageRemedies()
	case m.State != NeedsOperator:
		return nil
	case m.Abandoned: // where the VM is now
		return []string{fmt.Sprintf("godwit vm show %s", m.VM)}
	case m.AwaitsTarget() && !m.SourceGone:
		return []string{startAgent(m.Target), m.giveBack(), declareLost(m.Target)}
	case m.AwaitsTarget():
		return []string{startAgent(m.Target), m.endQEMU(m.Target), declareLost(m.Target)}
	case m.Locked(): // the source is to go on, or may have done so
		return []string{startAgent(m.Source), m.endQEMU(m.Source), declareLost(m.Source)}
	}
	return []string{fmt.Sprintf("godwit vm start %s", m.VM)}
}

func startAgent(host fleet.HostName) string {
	return fmt.Sprintf("start the agent on %s, if it is down: it will go on by itself", host)
}

// giveBack: an instance that is ended while its agent is up counts as one that may
// have run, as soon as that has tried to run it.
func (m *Migration) giveBack() string {
	return fmt.Sprintf("godwit migration return %s --host-is-off %s  # once it is off, or its agent is stopped and QEMU of %s there has ended", m.ID, m.Target, m.VM)
}

func (m *Migration) endQEMU(host fleet.HostName) string {
	return fmt.Sprintf("end QEMU of %s on %s, if the agent there is up and fails: %s has failed then", m.VM, host, m.VM)
}

func declareLost(host fleet.HostName) string {
	return fmt.Sprintf("godwit host lost %s --is-off  # only once it is off for good", host)
}
