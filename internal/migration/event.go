package migration

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
)

// EventKind says what happened.
type EventKind string

// The events. Those that answer an effect carry its sequence in Answers.
const (
	Started        EventKind = "started"         // the server takes it up
	CancelAsked    EventKind = "cancel-asked"    // by a person or another request; Detail says why
	TimerFired     EventKind = "timer-fired"     // the time of Timer has come
	GuestMeasured  EventKind = "guest-measured"  // before the copy; Measured is set
	TargetPrepared EventKind = "target-prepared" // answers PrepareTarget; Port and QEMU are set; Machine is the source's
	TargetFailed   EventKind = "target-failed"   // Detail and Gone are set
	CopyProgressed EventKind = "copy-progressed" // Progress is set
	SourceStopped  EventKind = "source-stopped"  // the source is paused behind its redirecting gate; Detail: by whom
	SourceFailed   EventKind = "source-failed"   // the source can't copy; Detail and Gone are set
	TargetLoaded   EventKind = "target-loaded"   // the target has everything, so the source has stopped; it asks for the commit
	TargetRefused  EventKind = "target-refused"  // asked by its source, the target gave up its right for good
	SourceRanOn    EventKind = "source-ran-on"   // by the target's refusal; nobody else was there to decide
	ReturnAsked    EventKind = "return-asked"    // by a person who knows that the target's host is off; Detail says why
	HostLost       EventKind = "host-lost"       // From's machine is off for good, says a person; Detail says who
	SwitchMeasured EventKind = "switch-measured" // answers StartCopy: the source sent everything; Source is set; Detail: but some frames
	TargetRunning  EventKind = "target-running"  // answers RunTarget; Target is set
	SourceRetired  EventKind = "source-retired"  // answers RetireSource
	AddressesKnown EventKind = "addresses-known" // every host sends to the target directly; Detail: but those
	TargetCompared EventKind = "target-compared" // Machine is the target's, which runs
	SourceReleased EventKind = "source-released" // answers ReleaseSource
	TargetFinished EventKind = "target-finished" // answers FinishTarget
	SourceResumed  EventKind = "source-resumed"  // answers ResumeSource
	TargetReleased EventKind = "target-released" // answers ReleaseTarget; Frames is set; Detail: why not all returned
)

// Events lists all kinds of events.
func Events() []EventKind {
	return []EventKind{
		Started, CancelAsked, TimerFired, GuestMeasured, TargetPrepared, TargetFailed,
		CopyProgressed, SourceStopped, SourceFailed, TargetLoaded,
		TargetRefused, SourceRanOn, ReturnAsked, HostLost,
		SwitchMeasured, TargetRunning, SourceRetired, AddressesKnown, TargetCompared,
		SourceReleased, TargetFinished, SourceResumed, TargetReleased,
	}
}

// Event is something that happened outside. Which fields count depends on Kind.
type Event struct {
	Kind    EventKind
	At      time.Time
	From    string // "server", a host's name, or who asked
	Answers uint64 // sequence of the effect it answers; zero for none
	Detail  string // one sentence
	Gone    bool   // the instance at From has ended
	Locked  string // the disk whose image's lock a target with the right to run waits for
	Unrun   bool   // and it never ran an instruction, with Gone of a target

	Due      time.Time // of TimerFired: At of the timer
	Port     uint16
	DiskPort uint16             // of TargetPrepared: where it takes local disks; 0 without
	QEMU     fleet.InstanceQEMU // of the target
	Machine  fleet.Machine      // nil if it is not known
	Frames   int
	Progress Progress
	Measured Measured
	Source   SourceMarks
	Target   TargetMarks
}

// answers maps an event to the effect it answers.
var answers = map[EventKind]EffectKind{
	TargetPrepared: PrepareTarget,
	SwitchMeasured: StartCopy,
	TargetRunning:  RunTarget,
	SourceRetired:  RetireSource,
	SourceReleased: ReleaseSource,
	TargetFinished: FinishTarget,
	SourceResumed:  ResumeSource,
	TargetReleased: ReleaseTarget,
}

// Progress is the state of the copy, as last reported by the source.
type Progress struct {
	At         time.Time            `json:"at"`             // by the source's clock
	Heard      time.Time            `json:"heard,omitzero"` // by the server's
	Pass       int                  `json:"pass"`           // from 1
	PassBegins bool                 `json:"-"`
	Sent       fleet.Bytes          `json:"sent"`
	Remaining  fleet.Bytes          `json:"remaining"`
	Total      fleet.Bytes          `json:"total"`
	DirtyRate  fleet.BytesPerSecond `json:"dirtyRate"`
	Bandwidth  fleet.BytesPerSecond `json:"bandwidth"`
	Elapsed    time.Duration        `json:"elapsed,omitempty"`  // since the copy was begun, by no clock that can be set; 0 in old records
	Throttle   int                  `json:"throttle,omitempty"` // percent of its time that is taken from the guest

	// Of the local disks, which are copied before the memory: the total grows with
	// what the guest writes. Zero without.
	DiskCopied fleet.Bytes          `json:"diskCopied,omitempty"`
	DiskTotal  fleet.Bytes          `json:"diskTotal,omitempty"`
	DiskRate   fleet.BytesPerSecond `json:"diskRate,omitempty"`
}

// Pass is where the copy stood when a pass over the memory began.
type Pass struct {
	Number    int           `json:"number"`
	At        time.Time     `json:"at"`
	Sent      fleet.Bytes   `json:"sent"`
	Remaining fleet.Bytes   `json:"remaining"`
	Elapsed   time.Duration `json:"elapsed,omitempty"` // as that of Progress
}

// SourceMarks are instants of the switch at the source, by the source's clock;
// those of QEMU's events are QEMU's own timestamps.
type SourceMarks struct {
	GateFlipped   time.Time   `json:"gateFlipped"`   // frames go to the target from here on
	Stopped       time.Time   `json:"stopped"`       // QEMU's STOP
	PreSwitchover time.Time   `json:"preSwitchover"` // QEMU waits for leave to send the devices' state
	Continued     time.Time   `json:"continued"`     // it got it
	Drained       time.Time   `json:"drained"`       // the frames left in the source's taps were sent on
	Completed     time.Time   `json:"completed"`     // QEMU has the target's word that it loaded
	FramesDrained int         `json:"framesDrained"`
	DrainError    string      `json:"drainError,omitempty"` // why others were not
	StoppedBy     string      `json:"stoppedBy"`            // "agent" or "qemu"
	Sent          fleet.Bytes `json:"sent"`
	Passes        int         `json:"passes"`
}

// TargetMarks are instants of the switch at the target, by the target's clock.
type TargetMarks struct {
	Loaded   time.Time `json:"loaded"`   // QEMU has loaded everything
	Asked    time.Time `json:"asked"`    // the agent asked for the commit
	Answered time.Time `json:"answered"` // and got it
	Resumed  time.Time `json:"resumed"`  // QEMU's RESUME
}
