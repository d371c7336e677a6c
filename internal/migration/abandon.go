package migration

import "time"

// Abandon ends a migration of which the record is not true any more, because an
// old copy of it was restored. No host is told anything: whoever calls this has
// found out by other means where the VM is.
func Abandon(m Migration, cause string, at time.Time) Migration {
	m.State, m.Cause, m.Ended, m.Abandoned = NeedsOperator, cause, at, true
	m.Pending, m.Timer, m.Exported = nil, nil, time.Time{}
	m.Remedies = m.remedies()
	return m
}
