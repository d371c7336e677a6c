package explain

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/migration"
)

// Disagreement of two clocks, as far as the record proves it.
type Disagreement struct {
	Ahead     string  `json:"ahead"` // Server, or a host
	Behind    string  `json:"behind"`
	AtLeastMs float64 `json:"atLeastMs"`
	First     string  `json:"first"` // what came first, and has the later time
	Then      string  `json:"then"`
}

// instant is a moment by somebody's clock.
type instant struct {
	clock string
	at    time.Time
	what  string
	late  bool // it may have been earlier
}

// disagreements compares what must have come first with what it led to. For
// each pair of clocks it gives the widest gap.
func disagreements(m *godwitv1.Migration) []Disagreement {
	found := []Disagreement{}
	for _, pair := range causes(m) {
		first, then := pair[0], pair[1]
		if first.at.IsZero() || then.at.IsZero() || first.late || first.clock == then.clock || !first.at.After(then.at) {
			continue
		}
		gap := float64(first.at.Sub(then.at)) / float64(time.Millisecond)
		found = widest(found, Disagreement{first.clock, then.clock, gap, first.what, then.what})
	}
	return found
}

func widest(found []Disagreement, one Disagreement) []Disagreement {
	for i, other := range found {
		if other.Ahead == one.Ahead && other.Behind == one.Behind {
			if one.AtLeastMs > other.AtLeastMs {
				found[i] = one
			}
			return found
		}
	}
	return append(found, one)
}

// causes lists pairs of instants of which the first must come before the
// second, because word of it, or its data, led to the second. An agent that
// takes over notes some instants later than they were, so that they can only
// be the second of a pair; so can the loading.
func causes(m *godwitv1.Migration) [][2]instant {
	h := handoverOf(m)
	ordered := orderedAt(m, migration.StartCopy)
	measured := heardAt(m, migration.SwitchMeasured, "the server heard that everything was sent")
	pairs := [][2]instant{
		{ordered, h.gateFlipped.instant("the source's gate was flipped")},
		{ordered, h.stopped.instant("the guest stopped")},
		{h.continued.instant("QEMU got leave to send the devices' state"), h.loaded.instant("QEMU had loaded it")},
		{h.stopped.instant("the guest stopped"), measured},
		{h.completed.instant("QEMU had sent everything"), measured},
		{heardAt(m, migration.TargetLoaded, "the server was asked for the commit"), h.answered.instant("the target had the answer")},
		{h.resumed.instant("the guest ran at the target"), heardAt(m, migration.TargetRunning, "the server heard of it")},
	}
	if passes := m.GetPasses(); len(passes) > 0 {
		first := instant{clock: m.GetSource(), at: timeOf(passes[0].GetAt()), what: "the first pass began"}
		pairs = append(pairs, [2]instant{ordered, first})
	}
	return pairs
}

func (m mark) instant(what string) instant { return instant{m.host, m.at, what, m.late} }

// orderedAt is when the server told a host to do something.
func orderedAt(m *godwitv1.Migration, kind migration.EffectKind) instant {
	for _, entry := range m.GetStory() {
		for _, order := range entry.GetOrdered() {
			if order.GetKind() == string(kind) {
				return instant{clock: Server, at: timeOf(entry.GetAt()), what: "the server ordered the copy"}
			}
		}
	}
	return instant{}
}

// heardAt is when the server heard of an event for the first time.
func heardAt(m *godwitv1.Migration, kind migration.EventKind, what string) instant {
	for _, entry := range m.GetStory() {
		if entry.GetEvent() == string(kind) {
			return instant{clock: Server, at: timeOf(entry.GetAt()), what: what}
		}
	}
	return instant{}
}

func timeOf(stamp *timestamppb.Timestamp) time.Time {
	if stamp == nil {
		return time.Time{}
	}
	return stamp.AsTime()
}
