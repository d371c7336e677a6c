package migration

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// Comparison is how the machine of a target that runs compared with its source's, as
// that was before the copy. Nothing follows from it: what would differ was to be
// found in Preparing, and a guest that runs is left to run.
type Comparison struct {
	At          time.Time          `json:"at"`
	Differences []fleet.Difference `json:"differences,omitempty"`
}

// maxDifferences bounds a record. More of them say nothing new.
const maxDifferences = 20

// awaitsComparison: the source's machine is known, and nobody has compared.
func (m *Migration) awaitsComparison() bool {
	return m.Machine != nil && m.Compared == nil && m.Committed && !m.TakenBack
}

func noteCompared(m *Migration, event Event) {
	differences := m.Machine.Differences(event.Machine)
	m.Compared = &Comparison{At: event.At, Differences: differences[:min(len(differences), maxDifferences)]}
}
