package explore

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"slices"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// Core is what is explored: migration.Step, or a mutant of it.
type Core func(migration.Migration, migration.Event) (migration.Migration, []migration.Effect, migration.Verdict)

// Options says what is explored.
type Options struct {
	Core       Core                            // nil is migration.Step
	Locked     func(*migration.Migration) bool // nil is migration.Migration.Locked
	Down       func(*migration.Migration) bool // nil is migration.Migration.Down
	Faults     int                             // at most so many
	HostsOnly  bool                            // they are deaths of hosts
	Lost       bool                            // a host that has died may be declared lost
	AutoResume bool                            // a source runs on by itself when its migration fails
	// KnownHeld breaks what the record says of such a source: that it does.
	KnownHeld bool
	// GiveUpAfterRun breaks the target's promise, to see that it is missed.
	GiveUpAfterRun bool
	// StatesMax bounds the search, 0 does not.
	StatesMax int
}

// Result is what was found.
type Result struct {
	States    int
	Rest      int // states at rest
	Violation string
	Trace     []string // the shortest way to it
}

// step is one thing that can happen.
type step struct {
	what string
	do   func(*world)
}

// node is a state with the way to it.
type node struct {
	world  *world // nil once it is known what follows: there are many
	from   int32
	what   string
	toRest bool // it is at rest, or comes to rest without another fault
	back   []int32
}

// search holds the states that were found, in the order of their distance.
type search struct {
	Options
	nodes []*node
	index map[digest]int32
	words map[string]string // each of node.what once
}

// digest stands for a key: two of the same are taken for the same state.
type digest [16]byte

// Explore visits every state, nearest first, until one is not as it must be.
func Explore(o Options) Result {
	if o.Core == nil {
		o.Core = migration.Step
	}
	if o.Locked == nil {
		o.Locked = (*migration.Migration).Locked
	}
	if o.Down == nil {
		o.Down = (*migration.Migration).Down
	}
	s := &search{Options: o, index: map[digest]int32{}, words: map[string]string{}}
	s.found(first(o), -1, "")
	rest := 0
	for at := 0; at < len(s.nodes); at++ {
		w := s.nodes[at].world
		atRest, violation := s.expand(at, w)
		if violation == "" {
			violation = s.always(w)
		}
		if atRest && violation == "" {
			rest++
			s.nodes[at].toRest = true
			violation = s.atRest(w)
		}
		s.nodes[at].world = nil
		if violation != "" {
			return Result{len(s.nodes), rest, violation, s.trace(at)}
		}
		if o.StatesMax > 0 && len(s.nodes) > o.StatesMax {
			return Result{len(s.nodes), rest, fmt.Sprintf("more than %d states", o.StatesMax), nil}
		}
	}
	if at := s.restless(); at >= 0 {
		return Result{len(s.nodes), rest, "it never comes to rest from here", s.trace(at)}
	}
	return Result{States: len(s.nodes), Rest: rest}
}

func (s *search) found(w *world, from int, what string) int {
	sum := sha256.Sum256(w.key())
	key := digest(sum[:len(digest{})])
	if at, known := s.index[key]; known {
		return int(at)
	}
	if _, known := s.words[what]; !known {
		s.words[what] = what
	}
	s.index[key] = int32(len(s.nodes))
	s.nodes = append(s.nodes, &node{world: w, from: int32(from), what: s.words[what]})
	return len(s.nodes) - 1
}

// expand finds what follows a state; at rest is one that only a fault, or a wish
// from outside, changes.
func (s *search) expand(at int, w *world) (atRest bool, violation string) {
	atRest = true
	follow := func(what string, do func(*world), counts bool) {
		next := w.clone()
		if do(next); next.flaw != "" && violation == "" {
			violation = what + ": " + next.flaw
		}
		if next.same {
			return
		}
		to := s.found(next, at, what)
		if to != at && counts {
			atRest = false
			s.nodes[to].back = append(s.nodes[to].back, int32(at))
		}
	}
	for _, one := range w.hostSteps(s.Options) {
		follow(one.what, one.do, true)
	}
	s.serverSteps(w, follow)
	for _, one := range w.faultSteps(s.Options) {
		follow(one.what, one.do, false)
	}
	return atRest, violation
}

// follows takes a step to the state after it. Unless it counts, a state where it
// can happen may be one at rest.
type follows func(what string, do func(*world), counts bool)

// serverSteps gives what servers do next: take an event, or send a command.
func (s *search) serverSteps(w *world, follow follows) {
	s.eventSteps(w, follow)
	s.askedSteps(w, follow)
	for _, r := range w.said {
		follow(fmt.Sprintf("server: hears %s answers=%d gone=%v unrun=%v", r.kind, r.answers, r.gone, r.unrun), func(w *world) {
			s.happen(w, migration.Event{Kind: r.kind, Answers: r.answers, Gone: r.gone, Unrun: r.unrun})
		}, true)
	}
	s.commitSteps(w, follow)
	s.commandSteps(w, follow)
}

// eventSteps are those by the server's own events.
func (s *search) eventSteps(w *world, follow follows) {
	event := func(what string, e migration.Event) {
		follow("server: "+what, func(w *world) { s.happen(w, e) }, true)
	}
	if w.m.State == migration.Planned {
		event("starts it", migration.Event{Kind: migration.Started})
	}
	if w.m.Timer != nil && !w.m.State.Final() {
		event("the deadline passes", migration.Event{Kind: migration.TimerFired, Due: w.m.Timer.At})
	}
	if w.m.State != migration.Planned {
		event("a deadline passes that was set anew since", migration.Event{Kind: migration.TimerFired, Due: start})
	}
	if w.known {
		event("all hosts have the addresses", migration.Event{Kind: migration.AddressesKnown})
	}
}

// askedSteps are those by what somebody asks for.
func (s *search) askedSteps(w *world, follow follows) {
	if w.cancels > 0 {
		follow("server: it is cancelled", func(w *world) {
			w.cancels--
			s.happen(w, migration.Event{Kind: migration.CancelAsked})
		}, false)
	}
	if w.tgt.off {
		follow("server: somebody says that the target's host is off", func(w *world) {
			w.risked = w.risked || w.ran && w.m.AwaitsTarget()
			s.happen(w, migration.Event{Kind: migration.ReturnAsked})
		}, false)
	}
	if s.Lost {
		s.lossSteps(w, follow)
	}
}

// commitSteps are the question for the commit, and its answer.
func (s *search) commitSteps(w *world, follow follows) {
	if w.tgt.up && w.tgt.exists && w.tgt.role == arriving && w.tgt.qemu == loaded {
		for _, lost := range []bool{false, true} {
			follow(fmt.Sprintf("server: the target asks for the commit; answer lost: %v", lost), func(w *world) {
				s.happen(w, migration.Event{Kind: migration.TargetLoaded})
				w.same = w.same && lost // asked again, it may have the answer
				for _, e := range w.m.Pending {
					if e.Kind == migration.RunTarget && !lost {
						w.take(e)
					}
				}
			}, true)
		}
	}
}

// commandSteps send what is pending, and what no longer is and may be on its way.
func (s *search) commandSteps(w *world, follow follows) {
	for _, e := range w.m.Pending {
		if h := w.at(e.Host); h.up {
			follow(fmt.Sprintf("%s: is told %d %s", e.Host, e.Sequence, e.Kind), func(w *world) { w.take(e) }, true)
		}
	}
	for _, e := range w.sent {
		if h := w.at(e.Host); h.up && e.Sequence > h.newest && !slices.Contains(w.m.Pending, e) {
			follow(fmt.Sprintf("%s: is told %d %s, which is old", e.Host, e.Sequence, e.Kind), func(w *world) { w.take(e) }, true)
		}
	}
}

// lossSteps gives what somebody may say of hosts: of those that have died that they
// are off for good, and the same of one that has no part.
func (s *search) lossSteps(w *world, follow follows) {
	for _, name := range []fleet.HostName{w.m.Source, w.m.Target, "other"} {
		if w.at(name).off || name == "other" && w.m.State != migration.Planned {
			follow(fmt.Sprintf("server: %s is declared lost", name), func(w *world) {
				held := s.Locked(&w.m)
				s.happen(w, migration.Event{Kind: migration.HostLost, From: string(name)})
				if h := w.at(name); h.off && !h.declared {
					h.declared, h.unsaid, w.same = true, held, false // also if nothing follows
				}
			}, false)
		}
	}
}

func (w *world) at(name fleet.HostName) *host {
	switch name {
	case w.m.Source:
		return &w.src
	case w.m.Target:
		return &w.tgt
	}
	return &host{}
}

// happen lets the core decide, and dispatches what it wants.
func (s *search) happen(w *world, e migration.Event) {
	e.At, e.From, e.Detail = start, cmp.Or(e.From, "somebody"), "for some reason"
	next, effects, verdict := s.Core(w.m, e)
	if verdict == migration.Broken {
		w.wrong(true, "the core calls it broken in "+string(w.m.State))
	}
	if verdict != migration.Act {
		w.same = true
		return
	}
	w.checkDecision(&next, effects, e)
	w.note(e)
	w.m = next
	w.sent = append(w.sent, effects...)
	slices.SortFunc(w.sent, func(a, b migration.Effect) int { return int(a.Sequence) - int(b.Sequence) })
	w.plain()
}

// wentOn: the source has the VM back, whose end is then as any VM's.
func wentOn(m *migration.Migration) bool {
	return m.State == migration.Aborted || m.State == migration.RollingBack && pending(m, migration.ResumeSource) == 0
}

// endsSource: the event says that the source has ended, which matters.
func (w *world) endsSource(e migration.Event) bool {
	lost := e.Kind == migration.HostLost && e.From == string(w.m.Source)
	return (lost || e.Kind == migration.SourceFailed && e.Gone) && !wentOn(&w.m)
}

// note keeps what an event says of the time, or of the source.
func (w *world) note(e migration.Event) {
	switch {
	case e.Kind == migration.TimerFired && w.m.State == migration.Settling && w.m.Released:
		w.unreleased = w.unreleased || e.Due.Equal(present)
	case e.Kind == migration.TimerFired && w.m.State == migration.Settling && !w.m.InGrace:
		w.overdue = w.overdue || e.Due.Equal(present)
	case w.endsSource(e):
		w.sourceEnd = true
	}
}

// restless gives a state from which no state at rest is reached without another
// fault, -1 if there is none.
func (s *search) restless() int {
	var queue []int32
	for at, one := range s.nodes {
		if one.toRest {
			queue = append(queue, int32(at))
		}
	}
	for ; len(queue) > 0; queue = queue[1:] {
		for _, before := range s.nodes[queue[0]].back {
			if !s.nodes[before].toRest {
				s.nodes[before].toRest = true
				queue = append(queue, before)
			}
		}
	}
	return slices.IndexFunc(s.nodes, func(one *node) bool { return !one.toRest })
}

// trace gives the steps from the beginning.
func (s *search) trace(at int) (steps []string) {
	for ; at > 0; at = int(s.nodes[at].from) {
		steps = append(steps, s.nodes[at].what)
	}
	slices.Reverse(steps)
	return steps
}
