package explain

import (
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// Story is a migration, told.
type Story struct {
	Summary   []string       `json:"summary"` // sentences; the first says where the VM is
	Decisions []Fact         `json:"decisions"`
	Timeline  []Line         `json:"timeline"`
	Shifts    []Shift        `json:"shifts"` // by which times are on the axis
	Clocks    []Disagreement `json:"clocks"`
	Pending   []string       `json:"pending"` // what hosts still have to do
	Remedies  []string       `json:"remedies"`
}

// Fact is something that was decided, and why.
type Fact struct {
	What string `json:"what"`
	Text string `json:"text"`
}

// Line is one thing that happened.
type Line struct {
	At    time.Time `json:"at"`           // on the axis
	Own   time.Time `json:"own,omitzero"` // the time that was noted, if it is another
	Clock string    `json:"clock"`        // by which it was noted: Server, or a host
	Who   string    `json:"who"`          // Server, a host, or who asked
	What  string    `json:"what"`
	Led   []string  `json:"led"` // to what, in order
}

// Server stands for the control plane.
const Server = "server"

// Of tells the story of a migration.
func Of(m *godwitv1.Migration) Story {
	t := newTeller(m)
	return Story{
		Summary: t.summary(), Decisions: decisions(m), Timeline: t.timeline(),
		Shifts: t.shifts(), Clocks: t.disagreements(),
		Pending: t.pending(), Remedies: append([]string{}, m.GetRemedies()...),
	}
}

// teller tells one migration.
type teller struct {
	axis
	noted  *godwitv1.Migration // with the times as they were noted
	orders map[uint64]order    // by sequence
}

// order is what a host was told, and when.
type order struct {
	*godwitv1.Order
	at time.Time
}

func newTeller(m *godwitv1.Migration) teller {
	t := teller{axis: axisOf(m), noted: m, orders: map[uint64]order{}}
	for _, pending := range m.GetPending() { // when is known only if the story tells it
		t.orders[pending.GetSequence()] = order{Order: pending}
	}
	for _, entry := range t.GetStory() {
		for _, ordered := range entry.GetOrdered() {
			t.orders[ordered.GetSequence()] = order{ordered, entry.GetAt().AsTime()}
		}
	}
	return t
}

// since gives a time from the request on.
func (t teller) since(at time.Time) string { return Offset(at.Sub(t.GetCreated().AsTime())) }
