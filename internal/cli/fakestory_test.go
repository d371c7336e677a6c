package cli_test

import (
	"time"

	"google.golang.org/protobuf/proto"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

func millisAfter(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

// entry is a line of a story, so many milliseconds after the request.
func entry(ms float64, who, event, state string, edit func(*godwitv1.StoryEntry)) *godwitv1.StoryEntry {
	e := &godwitv1.StoryEntry{At: after(millisAfter(ms)), Who: who, Event: event, State: state}
	if edit != nil {
		edit(e)
	}
	return e
}

// leads gives an entry orders and a timer.
func leads(answers uint64, timerMs float64, means string, orders ...*godwitv1.Order) func(*godwitv1.StoryEntry) {
	return func(e *godwitv1.StoryEntry) {
		e.Answers, e.Ordered = answers, orders
		if means != "" {
			e.Deadline, e.DeadlineMeans = after(millisAfter(timerMs)), means
		}
	}
}

func order(sequence uint64, kind, host string) *godwitv1.Order {
	return &godwitv1.Order{Sequence: sequence, Kind: kind, Host: host}
}

// told went well, between hosts whose clocks disagree.
var told = &godwitv1.Migration{
	Id: "told", Vm: "web1", Source: "host-a", Target: "host-b", Epoch: 3, State: "succeeded", Reason: "by hand",
	Created: after(0), Ended: after(millisAfter(4200)), Connections: 2, ConnectionsWhy: "a single one is bound by one processor, which encrypts page by page",
	Committed: true, TargetRuns: true, AddressesKnown: true, Port: 49152, SourceQemu: "10.0.2", TargetQemu: "10.1.0",
	Choice: &godwitv1.Choice{
		Why:    "3GiB of 4GiB memory stay free, 0 other VMs",
		Others: []*godwitv1.OtherHost{{Host: "host-d", Why: "1GiB of 4GiB memory stay free, 2 other VMs"}},
	},
	Refused: []*godwitv1.RefusedHost{
		{Host: "host-a", Why: []string{"it is where the VM is now"}},
		{Host: "host-c", Why: []string{"is cordoned", "its QEMU 7.2.17 has no machine type pc-q35-10.0"}},
		{Host: "host-e", Why: []string{"its agent is down"}},
	},
	Limits: []*godwitv1.PolicyValue{
		{Name: "bandwidth", BytesPerSecond: 100 << 20, From: "the request"}, {Name: "blackout", Ms: 300, From: "default"},
		{Name: "prepare", Ms: 60_000, From: "default"}, {Name: "copy", Ms: 300_000, From: "default: 150 s for each GiB of memory, but at least 5 min"},
		{Name: "switch", Ms: 3000, From: "default"}, {Name: "settle", Ms: 60_000, From: "default"},
		{Name: "grace", Ms: 1000, From: "default"}, {Name: "roll-back", Ms: 30_000, From: "default"},
	},
	Passes: []*godwitv1.Pass{
		{Number: 1, At: after(millisAfter(460)), RemainingBytes: 512 << 20},
		{Number: 2, At: after(millisAfter(2200)), SentBytes: 260 << 20, RemainingBytes: 6 << 20},
	},
	SourceMarks: &godwitv1.SourceMarks{
		GateFlipped: after(millisAfter(2396)), Stopped: after(millisAfter(2400.2)), PreSwitchover: after(millisAfter(2403)),
		Continued: after(millisAfter(2403.4)), Drained: after(millisAfter(2404)), Completed: after(millisAfter(2413)),
	},
	TargetMarks: &godwitv1.TargetMarks{
		Loaded: after(millisAfter(2401.1)), Asked: after(millisAfter(2401.3)), Answered: after(millisAfter(2403.6)), Resumed: after(millisAfter(2404.8)),
	},
	Foreseen: func() *godwitv1.Foreseen {
		seen := foreseenAs(hopeful)
		seen.Forecasts = append(seen.Forecasts, &godwitv1.Forecast{
			At: after(millisAfter(2200)), Pass: 2, Known: true, Probability: 1, TotalMs: between(1900, 1950, 2050), BlackoutMs: between(4, 6, 20),
			Bytes: between(260<<20, 266<<20, 270<<20), Passes: between(2, 2, 2), Reason: hopeful.Reason,
		})
		seen.Outcome = &godwitv1.ForeseenOutcome{Ended: true, TotalMs: 2004.8, BlackoutMs: 4.6, Bytes: 279_000_000, Passes: 2}
		return seen
	}(),
	Outcome: &godwitv1.Outcome{TotalMs: 2404.8, SettledMs: 4200, Passes: 2, Bytes: 279_000_000, BlackoutMs: 4.6, OwnMs: 4.6, FramesDrained: 7, StoppedBy: "agent"},
	Story: []*godwitv1.StoryEntry{
		entry(1, "server", "started", "preparing", leads(0, 60_001, "the target was not prepared in time", order(1, "prepare-target", "host-b"))),
		entry(400, "host-b", "target-prepared", "copying", leads(1, 300_400, "the copy did not converge in time", order(2, "start-copy", "host-a"))),
		entry(2404.5, "host-a", "source-stopped", "switching", func(e *godwitv1.StoryEntry) {
			leads(0, 5404.5, "the switch was not committed in time")(e)
			e.Detail = "stopped by agent: 3.1MiB left at 110MiB/s, about 28.2 ms, limit 300 ms; another pass would not leave much less"
		}),
		entry(2414, "host-b", "target-loaded", "settling", leads(0, 62_414, "the target did not run in time", order(3, "run-target", "host-b"))),
		entry(2415, "host-a", "switch-measured", "settling", leads(2, 0, "")),
		entry(2418, "host-b", "target-running", "settling", leads(3, 62_418, "the source or another host did not answer in time", order(4, "retire-source", "host-a"))),
		entry(2430, "host-a", "source-retired", "settling", leads(4, 0, "")),
		entry(3100, "server", "addresses-known", "settling", leads(0, 4100, "the grace time is over")),
		entry(4100, "server", "timer-fired", "settling", func(e *godwitv1.StoryEntry) {
			leads(0, 64_100, "a host did not clean up in time", order(5, "release-source", "host-a"))(e)
			e.Detail = "the grace time is over"
		}),
		entry(4150, "host-a", "source-released", "settling", leads(5, 64_150, "the target did not clean up in time", order(6, "finish-target", "host-b"))),
		entry(4200, "host-b", "target-finished", "succeeded", leads(6, 0, "")),
	},
}

// undone was cancelled in the switch; the source's agent does not answer.
var undone = func() *godwitv1.Migration {
	m := proto.CloneOf(told)
	m.Id, m.State, m.Committed, m.TargetRuns, m.AddressesKnown, m.TargetMarks = "undone", "needs-operator", false, false, false, nil
	m.Cause = "cancelled by operator: wrong host; and host-a does not answer, where web1 waits to go on"
	m.Remedies = []string{"start the agent on host-a, if it is down: it will go on by itself"}
	m.Choice = &godwitv1.Choice{Named: true}
	m.Refused, m.SourceMarks, m.Outcome = nil, nil, nil
	m.Pending = []*godwitv1.Order{order(3, "resume-source", "host-a")}
	m.Story = append(m.Story[:3:3],
		entry(2406, "operator", "cancel-asked", "rolling-back", func(e *godwitv1.StoryEntry) {
			leads(0, 32_406, "the roll-back did not end in time", order(3, "resume-source", "host-a"))(e)
			e.Detail, e.Withdrawn = "wrong host", []uint64{2}
		}),
		entry(8410, "host-a", "session-lost", "rolling-back", func(e *godwitv1.StoryEntry) { e.Detail = "nothing was heard of it for 6s" }),
		entry(9000, "server", "server-leads", "rolling-back", nil),
		entry(32_406, "server", "timer-fired", "needs-operator", func(e *godwitv1.StoryEntry) { e.Detail = "the roll-back did not end in time" }),
	)
	return m
}()
