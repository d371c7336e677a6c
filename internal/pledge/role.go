package pledge

import "godwit.dev/godwit/internal/fleet"

// Role is an instance's part, as its agent has written it down. The values are
// stored, so they are never renamed.
type Role string

// The roles.
const (
	Alone    Role = "alone"    // the only instance
	Source   Role = "source"   // of a migration; its gate may be closed
	RanOn    Role = "ran-on"   // source that runs by its target's refusal, of which the servers do not know yet
	Arriving Role = "arriving" // target before the commit
	Arrived  Role = "arrived"  // target after it
	Refused  Role = "refused"  // target that has given up for good
)

// MayHaveRun tells whether a target may have run an instruction; opened says
// that one of its gates is, or may be, open: they are opened first.
func (r Role) MayHaveRun(opened bool) bool { return r != Arriving || opened }

// State is what a session is told of an instance: gone says that it has ended,
// opened that one of its gates is, or may be, open.
func (r Role) State(gone, opened bool) fleet.InstanceState {
	switch {
	case gone || r == Refused:
		return fleet.InstanceExited
	case !r.MayHaveRun(opened):
		return fleet.InstanceIncoming
	case r == Source:
		return fleet.InstancePaused // or still running: the server must not rely on it
	}
	return fleet.InstanceRunning
}

// Run is what becomes of the right to run.
type Run string

// What it can be.
const (
	RunNow      Run = "now"     // the gate is opened, and then the vCPUs run
	RunsAlready Run = "already" // it was done before
	RunNever    Run = "never"   // the target has given up
)

// Run says what a target does with the right to run.
func (r Role) Run() Run {
	switch r {
	case Arriving:
		return RunNow
	case Refused:
		return RunNever
	}
	return RunsAlready
}

// GiveUp is a target's answer to its source, which asks it to give up.
type GiveUp string

// The answers.
const (
	GaveUp    GiveUp = "gave up"    // before; its instance has to end, if it has not
	GivesUp   GiveUp = "gives up"   // once that is written down
	KeepsOwns GiveUp = "keeps owns" // it has run, or nobody can tell that it has not
)

// GiveUp says what a target answers to its source.
func (r Role) GiveUp(mayHaveRun bool) GiveUp {
	switch {
	case r == Refused:
		return GaveUp
	case r != Arriving || mayHaveRun:
		return KeepsOwns
	}
	return GivesUp
}

// RunOn says whether a source may run on by its target's refusal in a migration,
// as far as its own is the present one; write that it must be written down first.
func (r Role) RunOn(present, migration string) (allowed, write bool) {
	if present != migration || r != Source && r != RanOn {
		return false, false
	}
	return true, r == Source // else it was tried before
}

// NoneToAsk: the target that a source asked to give up does not exist, and never
// will, or it is not the one; the servers have to decide.
func NoneToAsk(err error) bool {
	switch fleet.CodeOf(err) {
	case fleet.NotFound, fleet.Conflict, fleet.Denied:
		return true
	}
	return false
}

// Decision is what a server's answer to the question for the commit means.
type Decision string

// The decisions.
const (
	Granted  Decision = "granted"
	Denied   Decision = "denied"    // the server releases this target
	AskAgain Decision = "ask again" // nobody has decided: only what is said counts
)

// Decided reads the answer to a target of an epoch: the epoch that it may run at.
func Decided(own, answer fleet.Epoch, err error) Decision {
	switch code := fleet.CodeOf(err); {
	case err == nil && answer == own:
		return Granted
	case code == fleet.Conflict || code == fleet.Denied:
		return Denied
	}
	return AskAgain
}
