package explain

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// Shift is by how much the times of a clock were corrected for the axis.
type Shift struct {
	Clock string `json:"clock"` // Server, or a host
	// AheadMs is how far the clock is taken to be ahead of the axis; negative:
	// behind. Of several servers it is that of the one that is furthest behind.
	AheadMs float64 `json:"aheadMs"`
}

// axis holds a record whose times are all by the clock of the server that
// began it.
type axis struct {
	*godwitv1.Migration
	story  time.Duration            // the most that times of the story were moved, to be in order
	ahead  map[string]time.Duration // by how much a host's clock is ahead
	causes []cause                  // by the hosts' own clocks
}

// farthest bounds what is believed of a clock. More is no clock's error.
const farthest = 100 * 365 * 24 * time.Hour

// axisOf leaves the record as it is.
func axisOf(m *godwitv1.Migration) axis {
	a := axis{Migration: proto.CloneOf(m)}
	a.orderStory()
	a.causes = causes(a.Migration)
	a.ahead = clocksAhead(a.causes, a.GetSource(), a.GetTarget(), a.GetOutcome().GetClocksApartMs())
	a.move(a.GetSource(), sourceTimes(a.Migration))
	a.move(a.GetTarget(), targetTimes(a.Migration))
	return a
}

// orderStory moves times of the story that are before the entry before: the
// order is that in which entries were written, but not always by one server.
// The distances between those of one clock are kept.
func (a *axis) orderStory() {
	last, late := a.GetCreated().AsTime(), time.Duration(0)
	for _, entry := range a.GetStory() {
		at := entry.GetAt().AsTime()
		behind := last.Sub(at)
		if behind <= 0 || behind > farthest {
			late = 0
		} else {
			late = max(late, behind)
		}
		if late > 0 {
			entry.At = timestamppb.New(at.Add(late))
		}
		if late > 0 && entry.GetDeadline() != nil {
			entry.Deadline = timestamppb.New(entry.GetDeadline().AsTime().Add(late))
		}
		a.story = max(a.story, late)
		last = entry.GetAt().AsTime()
	}
}

// move puts a host's times on the axis.
func (a *axis) move(host string, times []*timestamppb.Timestamp) {
	for _, at := range times {
		if at != nil {
			moved := timestamppb.New(at.AsTime().Add(-a.ahead[host]))
			at.Seconds, at.Nanos = moved.Seconds, moved.Nanos
		}
	}
}

func sourceTimes(m *godwitv1.Migration) []*timestamppb.Timestamp {
	s := m.GetSourceMarks()
	times := []*timestamppb.Timestamp{
		m.GetProgress().GetAt(), s.GetGateFlipped(), s.GetStopped(), s.GetPreSwitchover(), s.GetContinued(), s.GetDrained(), s.GetCompleted(),
	}
	for _, pass := range m.GetPasses() {
		times = append(times, pass.GetAt())
	}
	return times
}

func targetTimes(m *godwitv1.Migration) []*timestamppb.Timestamp {
	g := m.GetTargetMarks()
	return []*timestamppb.Timestamp{g.GetLoaded(), g.GetAsked(), g.GetAnswered(), g.GetResumed()}
}

// shifts lists the clocks that were corrected.
func (a *axis) shifts() []Shift {
	list := []Shift{}
	add := func(clock string, ahead time.Duration) {
		if ahead != 0 {
			list = append(list, Shift{clock, milliseconds(ahead)})
		}
	}
	add(Server, -a.story)
	add(a.GetSource(), a.ahead[a.GetSource()])
	add(a.GetTarget(), a.ahead[a.GetTarget()])
	return list
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// span is what is known of a length of time.
type span struct{ least, most time.Duration }

// nearest gives the value in a span that is nearest to zero. Of bounds that
// contradict each other it is the nearer one, or zero if that is between them.
func (s span) nearest() time.Duration {
	return min(max(0, min(s.least, s.most)), max(s.least, s.most))
}

// clocksAhead says how far the hosts' clocks are ahead of the server's: as
// little as the causes allow. apartMs is how far the target's is ahead of the
// source's, if the outcome is corrected for that: so it is taken here too.
func clocksAhead(causes []cause, source, target string, apartMs float64) map[string]time.Duration {
	s, t := boundsOf(causes, source, Server), boundsOf(causes, target, Server)
	between := boundsOf(causes, target, source)
	if apartMs != 0 {
		apart := limited(time.Duration(apartMs * float64(time.Millisecond)))
		between = span{apart, apart}
	}
	atSource := span{max(s.least, t.least-between.most), min(s.most, t.most-between.least)}.nearest()
	atTarget := span{max(t.least, atSource+between.least), min(t.most, atSource+between.most)}.nearest()
	return map[string]time.Duration{source: atSource, target: atTarget}
}

// boundsOf says how far one clock is ahead of another by the causes.
func boundsOf(causes []cause, clock, other string) span {
	found := span{-farthest, farthest}
	for _, one := range causes {
		gap := limited(one.gap())
		switch {
		case !one.proves():
		case one.first.clock == clock && one.then.clock == other:
			found.least = max(found.least, gap)
		case one.first.clock == other && one.then.clock == clock:
			found.most = min(found.most, -gap)
		}
	}
	return found
}

func limited(d time.Duration) time.Duration { return min(max(d, -farthest), farthest) }
