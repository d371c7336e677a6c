package explain

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// timeline puts the request, the story, the passes and the marks of the
// hand-over on one axis. Of what has the same time there, that comes first which
// led to the other.
func (t teller) timeline() []Line {
	lead, follow := marksOf(t.Migration)
	lines := t.marks(lead)
	lines = append(lines, Line{
		At: t.GetCreated().AsTime(), Clock: Server, Who: Server,
		What: with(fmt.Sprintf("records the request to move %s from %s to %s", t.GetVm(), t.GetSource(), t.GetTarget()), ": ", t.GetReason()),
		Led:  []string{},
	})
	state := string(migration.Planned)
	for i, entry := range t.GetStory() {
		line := t.line(entry, state)
		if own := t.noted.GetStory()[i].GetAt().AsTime(); !own.Equal(line.At) {
			line.Own = own
		}
		lines = append(lines, line)
		state = entry.GetState()
	}
	lines = append(lines, t.passes()...)
	lines = append(lines, t.marks(follow)...)
	slices.SortStableFunc(lines, func(a, b Line) int { return a.At.Compare(b.At) })
	return lines
}

func (t teller) marks(marks []mark) []Line {
	lines := make([]Line, len(marks))
	for i, one := range marks {
		what := one.what
		if one.late {
			what += ", then or before: its agent took over here"
		}
		lines[i] = t.hostLine(one.host, one.at, what)
	}
	return lines
}

// hostLine tells what a host noted by its own clock.
func (t teller) hostLine(host string, at time.Time, what string) Line {
	line := Line{At: at, Clock: host, Who: host, What: what, Led: []string{}}
	if ahead := t.ahead[host]; ahead != 0 {
		line.Own = at.Add(ahead)
	}
	return line
}

// line tells an entry of the story; state is the one before it.
func (t teller) line(entry *godwitv1.StoryEntry, state string) Line {
	return Line{
		At: entry.GetAt().AsTime(), Clock: Server, Who: cmp.Or(entry.GetWho(), Server),
		What: t.event(entry) + t.answered(entry), Led: t.led(entry, state),
	}
}

// answered names the order that an entry speaks of, and how long it took.
func (t teller) answered(entry *godwitv1.StoryEntry) string {
	order, known := t.orders[entry.GetAnswers()]
	switch {
	case entry.GetAnswers() == 0:
		return ""
	case !known || order.at.IsZero():
		return fmt.Sprintf(" (order %d)", entry.GetAnswers())
	}
	return fmt.Sprintf(" (order %d, after %.3fs)", entry.GetAnswers(), entry.GetAt().AsTime().Sub(order.at).Seconds())
}

// led lists what an event led to.
func (t teller) led(entry *godwitv1.StoryEntry, before string) []string {
	led := []string{}
	if entry.GetState() != before {
		led = append(led, "state "+entry.GetState())
	}
	runs := func(order *godwitv1.Order) bool { return order.GetKind() == string(migration.RunTarget) }
	switch {
	case slices.ContainsFunc(entry.GetOrdered(), runs):
		led = append(led, fmt.Sprintf("committed: %s owns %s from here on, at epoch %d", t.GetTarget(), t.GetVm(), t.GetEpoch()+1))
	case entry.GetEvent() == string(migration.TargetLoaded):
		led = append(led, fmt.Sprintf("the commit waits until %s has sent everything: its QEMU may run the guest on by itself before", t.GetSource()))
	}
	for _, sequence := range entry.GetWithdrawn() {
		led = append(led, fmt.Sprintf("order %d%s withdrawn", sequence, t.toWhom(sequence)))
	}
	for _, order := range entry.GetOrdered() {
		if epoch := order.GetEpoch(); epoch > 0 {
			led = append(led, fmt.Sprintf("taken back: %s owns %s again, at epoch %d", order.GetHost(), t.GetVm(), epoch))
		}
		led = append(led, fmt.Sprintf("order %d to %s: %s", order.GetSequence(), order.GetHost(), task(order)))
	}
	if entry.GetDeadline() != nil {
		led = append(led, fmt.Sprintf("timer at %s: %s", t.since(entry.GetDeadline().AsTime()), entry.GetDeadlineMeans()))
	}
	return led
}

func (t teller) toWhom(sequence uint64) string {
	if order, known := t.orders[sequence]; known {
		return " to " + order.GetHost()
	}
	return ""
}

// Passes that are told one by one: the first and the last ones. A guest that
// writes much makes hundreds that look alike.
const (
	firstPasses = 6
	lastPasses  = 5
)

func (t teller) passes() []Line {
	passes := t.GetPasses()
	var lines []Line
	skipped := passes[:0:0]
	for i, pass := range passes {
		if i >= firstPasses && i < len(passes)-lastPasses {
			skipped = append(skipped, pass)
			continue
		}
		if len(skipped) > 0 {
			lines, skipped = append(lines, t.manyPasses(skipped)), nil
		}
		lines = append(lines, t.hostLine(t.GetSource(), pass.GetAt().AsTime(), passText(pass)))
	}
	return lines
}

func passText(pass *godwitv1.Pass) string {
	left, sent := fleet.Bytes(pass.GetRemainingBytes()), fleet.Bytes(pass.GetSentBytes())
	if pass.GetNumber() == 1 {
		return fmt.Sprintf("pass 1 over the memory begins: %v to send", left)
	}
	return fmt.Sprintf("pass %d begins: %v were written meanwhile and are to be sent again; %v sent so far", pass.GetNumber(), left, sent)
}

// manyPasses tells of several passes at the time of the first.
func (t teller) manyPasses(passes []*godwitv1.Pass) Line {
	size := func(a, b *godwitv1.Pass) int { return cmp.Compare(a.GetRemainingBytes(), b.GetRemainingBytes()) }
	first, last := passes[0], passes[len(passes)-1]
	least, most := slices.MinFunc(passes, size), slices.MaxFunc(passes, size)
	return t.hostLine(t.GetSource(), first.GetAt().AsTime(), fmt.Sprintf("passes %d to %d begin, from here to %s, each with %v to %v to be sent again",
		first.GetNumber(), last.GetNumber(), t.since(last.GetAt().AsTime()),
		fleet.Bytes(least.GetRemainingBytes()), fleet.Bytes(most.GetRemainingBytes())))
}
