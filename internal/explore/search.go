package explore

import (
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
	Core       Core // nil is migration.Step
	Faults     int  // at most so many
	AutoResume bool // a source runs on by itself when its migration fails
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
	s := &search{Options: o, index: map[digest]int32{}, words: map[string]string{}}
	s.found(first(o.Faults), -1, "")
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
	follow := func(what string, do func(*world) string, counts bool) {
		next := w.clone()
		if broken := do(next); broken != "" && violation == "" {
			violation = what + ": " + broken
		}
		to := s.found(next, at, what)
		if to != at && counts {
			atRest = false
			s.nodes[to].back = append(s.nodes[to].back, int32(at))
		}
	}
	for _, one := range w.hostSteps(s.Options) {
		follow(one.what, func(w *world) string { one.do(w); return "" }, true)
	}
	s.serverSteps(w, follow)
	for _, one := range w.faultSteps() {
		follow(one.what, func(w *world) string { one.do(w); return "" }, false)
	}
	return atRest, violation
}

// serverSteps gives what servers do next: take an event, or send a command.
func (s *search) serverSteps(w *world, follow func(string, func(*world) string, bool)) {
	event := func(what string, e migration.Event, counts bool) {
		follow("server: "+what, func(w *world) string { return s.happen(w, e) }, counts)
	}
	if w.m.State == migration.Planned {
		event("starts it", migration.Event{Kind: migration.Started}, true)
	}
	if w.m.Timer != nil && !w.m.State.Final() {
		event("the deadline passes", migration.Event{Kind: migration.TimerFired, Due: w.m.Timer.At}, true)
	}
	if w.m.State == migration.Settling && w.m.TargetRuns && !w.m.AddressesKnown {
		event("all hosts have the addresses", migration.Event{Kind: migration.AddressesKnown}, true)
	}
	if w.cancels > 0 {
		follow("server: it is cancelled", func(w *world) string {
			w.cancels--
			return s.happen(w, migration.Event{Kind: migration.CancelAsked})
		}, false)
	}
	for _, r := range w.said {
		event(fmt.Sprintf("hears %s answers=%d gone=%v unrun=%v", r.kind, r.answers, r.gone, r.unrun),
			migration.Event{Kind: r.kind, Answers: r.answers, Gone: r.gone, Unrun: r.unrun}, true)
	}
	if w.tgt.up && w.tgt.exists && w.tgt.role == arriving && w.tgt.qemu == loaded {
		for _, lost := range []bool{false, true} {
			follow(fmt.Sprintf("server: the target asks for the commit; answer lost: %v", lost), func(w *world) string {
				broken := s.happen(w, migration.Event{Kind: migration.TargetLoaded})
				for _, e := range w.m.Pending {
					if e.Kind == migration.RunTarget && !lost {
						w.take(e)
					}
				}
				return broken
			}, true)
		}
	}
	for _, e := range w.m.Pending {
		if h := w.at(e.Host); h.up {
			follow(fmt.Sprintf("%s: is told %d %s", e.Host, e.Sequence, e.Kind), func(w *world) string { w.take(e); return "" }, true)
		}
	}
	for _, e := range w.sent {
		if h := w.at(e.Host); h.up && e.Sequence > h.newest && !slices.Contains(w.m.Pending, e) {
			follow(fmt.Sprintf("%s: is told %d %s, which is old", e.Host, e.Sequence, e.Kind), func(w *world) string { w.take(e); return "" }, true)
		}
	}
}

func (w *world) at(name fleet.HostName) *host {
	if name == w.m.Target {
		return &w.tgt
	}
	return &w.src
}

// happen lets the core decide, and dispatches what it wants.
func (s *search) happen(w *world, e migration.Event) (broken string) {
	e.At, e.From, e.Detail = start, "somebody", "for some reason"
	next, effects, verdict := s.Core(w.m, e)
	switch verdict {
	case migration.Act:
	case migration.Broken:
		return "the core calls it broken in " + string(w.m.State)
	default:
		return ""
	}
	w.m = next
	w.sent = append(w.sent, effects...)
	slices.SortFunc(w.sent, func(a, b migration.Effect) int { return int(a.Sequence) - int(b.Sequence) })
	w.plain()
	return ""
}

// always checks what must hold in every state.
func (s *search) always(w *world) string {
	switch {
	case w.src.inEffect() && w.tgt.inEffect():
		return "two instances are in effect"
	case w.src.inEffect() && w.ran:
		return "the source is in effect, though the target has run: what it did is lost"
	}
	return ""
}

// atRest checks what must hold where nothing more happens by itself.
func (s *search) atRest(w *world) string {
	m := &w.m
	owner := m.Owner()
	on, off := &w.src, &w.tgt
	if owner.Host == m.Target {
		on, off = &w.tgt, &w.src
	}
	stuck := m.State == migration.NeedsOperator
	switch {
	case !m.State.Final():
		return "it rests in " + string(m.State)
	case m.State != migration.Succeeded && m.Cause == "":
		return "it ended without a cause"
	case off.inEffect():
		return "what is in effect is not what the record says"
	case !on.inEffect() && !on.killed && !stuck:
		return "the VM runs nowhere, and no fault has killed it"
	case stuck && !w.src.off && !w.tgt.off && !w.src.killed && !w.tgt.killed:
		return "an operator is needed, and all hosts and instances live"
	case on.inEffect() && on.epoch != owner.Epoch:
		return fmt.Sprintf("it is in effect at epoch %d, and the record says %d", on.epoch, owner.Epoch)
	case !off.off && off.exists && !stuck:
		return "an instance is left on the host that the VM is not on"
	case len(m.Pending) > 0 && !w.src.off && !w.tgt.off:
		return fmt.Sprintf("%v is pending for ever", m.Pending)
	}
	return ""
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
