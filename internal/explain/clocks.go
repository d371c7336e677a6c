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

// cause is two instants of which the first must come before the second, because
// word of it, or its data, led to the second.
type cause struct{ first, then instant }

// proves reports whether anything follows for the clocks.
func (c cause) proves() bool {
	return !c.first.at.IsZero() && !c.then.at.IsZero() && !c.first.late && c.first.clock != c.then.clock
}

// gap is how far the clock of the first must be ahead of that of the second.
func (c cause) gap() time.Duration { return c.first.at.Sub(c.then.at) }

// disagreements compares what must have come first with what it led to. For
// each pair of clocks it gives the widest gap. Where the servers' own clocks
// disagree nothing is said of them and the hosts'.
func (a *axis) disagreements() []Disagreement {
	found := []Disagreement{}
	for _, one := range a.causes {
		first, then := one.first, one.then
		byServer := first.clock == Server || then.clock == Server
		if one.proves() && one.gap() > 0 && !(byServer && a.story > 0) {
			found = widest(found, Disagreement{first.clock, then.clock, milliseconds(one.gap()), first.what, then.what})
		}
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

// causes lists what is known to come before what. An agent that takes over
// notes some instants later than they were, so that they can only be the second
// of a pair; so can the loading.
func causes(m *godwitv1.Migration) []cause {
	h := handoverOf(m)
	ordered := orderedAt(m, migration.StartCopy)
	measured := heardAt(m, migration.SwitchMeasured, "the server heard that everything was sent")
	asked := heardAt(m, migration.TargetLoaded, "the server was asked for the commit")
	stopped := h.stopped.instant("the guest stopped")
	list := []cause{
		{ordered, h.gateFlipped.instant("the source's gate was flipped")},
		{ordered, stopped},
		{stopped, heardAt(m, migration.SourceStopped, "the server heard of it")},
		{h.continued.instant("QEMU got leave to send the devices' state"), h.loaded.instant("QEMU had loaded it")},
		{stopped, measured},
		{h.completed.instant("QEMU had sent everything"), measured},
		{h.asked.instant("the target asked for the commit"), asked},
		{asked, h.answered.instant("the target had the answer")},
		{h.resumed.instant("the guest ran at the target"), heardAt(m, migration.TargetRunning, "the server heard of it")},
	}
	if progress := m.GetProgress(); progress.GetHeard() != nil {
		list = append(list, cause{
			instant{clock: m.GetSource(), at: timeOf(progress.GetAt()), what: "the source told how far the copy was"},
			instant{clock: Server, at: timeOf(progress.GetHeard()), what: "the server heard of it"},
		})
	}
	if passes := m.GetPasses(); len(passes) > 0 {
		list = append(list, passCauses(m, ordered, measured)...)
	}
	return list
}

// passCauses: all passes begin while the copy lasts.
func passCauses(m *godwitv1.Migration, ordered, measured instant) []cause {
	at := func(i int, what string) instant {
		return instant{clock: m.GetSource(), at: timeOf(m.GetPasses()[i].GetAt()), what: what}
	}
	last := at(len(m.GetPasses())-1, "the last pass began")
	return []cause{
		{ordered, at(0, "the first pass began")},
		{last, heardAt(m, migration.SourceStopped, "the server heard that the guest had stopped")},
		{last, heardAt(m, migration.SourceResumed, "the server heard that the guest ran on")},
		{last, measured},
	}
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
