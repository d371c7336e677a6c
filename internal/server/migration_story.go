package server

import (
	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/placement"
)

// maxHosts bounds how many hosts of each kind a record tells of: those that
// could not be the target, and those that could and are not.
const maxHosts = 100

// noteChoice records how placement came to the target.
func noteChoice(m *migration.Migration, chosen placement.Result, want fleet.HostName) {
	m.Why, m.Choice.Named = chosen.Why, want != ""
	for _, refused := range chosen.Refused[:min(maxHosts, len(chosen.Refused))] {
		m.Refused = append(m.Refused, migration.RefusedHost{Host: refused.Host, Why: refused.Why})
	}
	others := chosen.Ranked[1:] // the first is the target
	for _, other := range others[:min(maxHosts, len(others))] {
		m.Choice.Others = append(m.Choice.Others, migration.OtherHost{Host: other.Host, Why: other.Why})
	}
	m.Choice.Unlisted = len(chosen.Refused) - len(m.Refused) + len(others) - len(m.Choice.Others)
}

// addDecisions shows what was decided at the request.
func addDecisions(message *godwitv1.Migration, m migration.Migration) {
	message.Uid, message.Committed, message.Port = string(m.UID), m.Committed, uint32(m.Port)
	message.SourceQemu, message.TargetQemu = m.SourceQEMU.Version, m.TargetQEMU.Version
	message.TargetRuns, message.SourceGone = m.TargetRuns, m.SourceGone
	message.SourceLost, message.TargetLost = m.SourceLost, m.TargetLost
	message.TakenBack, message.TargetGone = m.TakenBack, m.TargetGone
	message.Unheld, message.TargetAsked, message.SourceSent = m.Unheld, m.TargetAsked, m.SourceSent
	message.AddressesKnown, message.Unaware = m.AddressesKnown, m.Unaware
	message.Choice = &godwitv1.Choice{Why: m.Why, Named: m.Choice.Named, Unlisted: uint32(m.Choice.Unlisted)}
	for _, other := range m.Choice.Others {
		message.Choice.Others = append(message.Choice.Others, &godwitv1.OtherHost{Host: string(other.Host), Why: other.Why})
	}
	for _, value := range m.Policy.Values() {
		message.Limits = append(message.Limits, &godwitv1.PolicyValue{
			Name: string(value.Name), Ms: value.Time.Milliseconds(), BytesPerSecond: uint64(value.Rate), From: value.From, Text: value.Text,
		})
	}
	message.Tunnels = map[string]uint32{}
	for port, tunnel := range m.Tunnels {
		message.Tunnels[port] = uint32(tunnel)
	}
}

// addStory shows what happened, and what is still to happen.
func addStory(message *godwitv1.Migration, m migration.Migration) {
	for _, entry := range m.Story {
		line := &godwitv1.StoryEntry{
			At: timestamp(entry.At), Who: entry.From, Event: string(entry.Event), State: string(entry.State), Detail: entry.Detail,
			Gone: entry.Gone, Answers: entry.Answers, Ordered: orderMessages(entry.Ordered), Withdrawn: entry.Withdrawn,
		}
		if entry.Timer != nil {
			line.Deadline, line.DeadlineMeans = timestamp(entry.Timer.At), entry.Timer.What
		}
		message.Story = append(message.Story, line)
	}
	message.Pending = orderMessages(m.Pending)
	if m.Timer != nil {
		message.Deadline, message.DeadlineMeans = timestamp(m.Timer.At), m.Timer.What
	}
	if marks := m.SourceMarks; marks != nil {
		message.SourceMarks = &godwitv1.SourceMarks{
			GateFlipped: timestamp(marks.GateFlipped), Stopped: timestamp(marks.Stopped), PreSwitchover: timestamp(marks.PreSwitchover),
			Continued: timestamp(marks.Continued), Drained: timestamp(marks.Drained), Completed: timestamp(marks.Completed),
		}
	}
	if marks := m.TargetMarks; marks != nil {
		message.TargetMarks = &godwitv1.TargetMarks{
			Loaded: timestamp(marks.Loaded), Asked: timestamp(marks.Asked),
			Answered: timestamp(marks.Answered), Resumed: timestamp(marks.Resumed),
		}
	}
}

func orderMessages(effects []migration.Effect) (orders []*godwitv1.Order) {
	for _, effect := range effects {
		orders = append(orders, &godwitv1.Order{
			Sequence: effect.Sequence, Kind: string(effect.Kind), Host: string(effect.Host),
			ReturnFrames: effect.ReturnFrames, Epoch: uint64(effect.Epoch),
		})
	}
	return orders
}
