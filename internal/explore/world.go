package explore

import (
	"cmp"
	"encoding/binary"
	"slices"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
)

// Gates, as far as they matter here: who may exchange packets.
const (
	shut     = "shut"     // target: nothing leaves, frames of the tunnel or of others wait
	open     = "open"     // the instance may send, and gets its frames
	redirect = "redirect" // source: nothing may be sent, frames go to the target
)

// What a QEMU does.
const (
	none     = "none"     // there is none
	waits    = "waits"    // target: for the state
	loaded   = "loaded"   // target: has everything, paused
	runs     = "runs"     // vCPUs run
	stopped  = "stopped"  // source: by its agent or itself, at the end of the copy
	sending  = "sending"  // source: let go on, sends its devices
	finished = "finished" // source: knows that the target has everything
	failed   = "failed"   // target: its stream broke; it can't be used again
	dead     = "dead"
)

// Parts, as an agent writes them down.
const (
	alone    = "alone"
	source   = "source"
	ranOn    = "ran-on"
	arriving = "arriving"
	arrived  = "arrived"
	refused  = "refused"
)

// host is one side with what its agent knows.
type host struct {
	exists   bool   // the instance's folder, with role and epoch
	role     string // written down
	epoch    fleet.Epoch
	gate     string // kept by the kernel
	qemu     string
	up       bool   // the agent runs
	off      bool   // the host died, for good
	declared bool   // and somebody has said so
	unsaid   bool   // while the migration held the VM, so that it must say that the VM is down
	copying  bool   // source: the agent follows the copy
	told     uint16 // sequences that this agent has carried out, a bit each
	newest   uint64 // of those
	killed   bool   // by a fault: its end is nobody's doing
}

// side is one of a migration's two hosts.
type side struct {
	name string // for a trace
	host fleet.HostName
}

func (w *world) sides() []side {
	return []side{{"source", w.m.Source}, {"target", w.m.Target}}
}

// report is what a host said once, and what may be heard at any time since.
type report struct {
	kind        migration.EventKind
	answers     uint64
	gone, unrun bool
}

// world is one state of everything.
type world struct {
	m        migration.Migration
	src, tgt host
	sent     []migration.Effect // dispatched, and perhaps still on their way
	said     []report
	faults   int // still to come, at most
	cancels  int
	cut      bool // the stream of the copy

	// What nobody but we can know.
	opened     bool // the target's gate was opened: it may have run
	ran        bool // it has run an instruction
	waiting    bool // frames wait in the target's tap
	known      bool // every host sends to the target directly
	overdue    bool // the migration settled, and not all answered in time
	unreleased bool // after that, or after the grace time, a host was not released in time
	sourceEnd  bool // a server has heard that the source has ended
	risked     bool // the VM was returned from a host that had run it unheard
	stale      bool // the source has run since the target had everything

	// Of the last step, and no part of the state.
	flaw string // what it has done wrong
	same bool   // it has changed nothing
}

// The record's timer is of a time of its own; one that was set anew was of
// another.
var (
	start   = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	present = start.Add(time.Hour)
)

// first gives the state after the migration was planned.
func first(o Options) *world {
	vm := fleet.VM{Name: "vm", UID: "u", Owner: fleet.Owner{Host: "src", Epoch: 1}}
	w := &world{
		m:      migration.New("m", vm, "tgt", nil, migration.DefaultPolicy(fleet.GiB), "explored", start),
		src:    host{exists: true, role: alone, epoch: 1, gate: open, qemu: runs, up: true},
		tgt:    host{gate: shut, qemu: none, up: true},
		faults: o.Faults, cancels: 1,
	}
	w.m.Unheld = o.AutoResume && !o.KnownHeld
	w.plain()
	return w
}

// plain takes away what tells records apart and decides nothing.
func (w *world) plain() {
	m := &w.m
	m.Story, m.Passes, m.Remedies = nil, nil, nil
	m.SourceMarks, m.TargetMarks, m.Progress = nil, nil, migration.Progress{}
	m.Unaware = ""
	if m.Cause != "" {
		m.Cause = "some"
	}
	if m.Timer != nil {
		m.Timer = &migration.Timer{At: present, After: m.Timer.After, What: m.Timer.What}
	}
	if !m.Ended.IsZero() {
		m.Ended = start
	}
}

// key tells states apart.
func (w *world) key() []byte {
	m := &w.m
	k := make(key, 0, 256)
	k.text(string(m.State), m.Cause)
	k.flags(m.Committed, m.TakenBack, m.SourceGone, m.TargetGone, m.CopyStarted, m.TargetRuns, m.AddressesKnown, m.InGrace, m.Released, m.TargetAsked, m.SourceSent,
		m.SourceLost, m.TargetLost, m.LostUnheard)
	k.flags(w.cut, w.opened, w.ran, w.waiting, w.known, w.overdue, w.unreleased, w.sourceEnd, w.risked, w.stale)
	k.numbers(m.Sequence, uint64(w.faults), uint64(w.cancels))
	if m.Timer != nil {
		k.text(m.Timer.What)
	}
	k.effects(m.Pending)
	k.host(&w.src)
	k.host(&w.tgt)
	k.effects(w.sent)
	for _, r := range w.said {
		k.text(string(r.kind))
		k.flags(r.gone, r.unrun)
		k.numbers(r.answers)
	}
	return k
}

// key is the beginning of a key; every part says where it ends.
type key []byte

func (k *key) text(words ...string) {
	for _, word := range words {
		*k = append(append(*k, word...), 0)
	}
}

func (k *key) flags(flags ...bool) {
	for _, flag := range flags {
		one := byte('-')
		if flag {
			one = '+'
		}
		*k = append(*k, one)
	}
}

func (k *key) numbers(numbers ...uint64) {
	for _, number := range numbers {
		*k = binary.AppendUvarint(*k, number)
	}
}

func (k *key) effects(effects []migration.Effect) {
	for _, e := range effects {
		k.text(string(e.Kind))
		k.flags(e.ReturnFrames)
		k.numbers(e.Sequence, uint64(e.Epoch))
	}
	k.text("")
}

func (k *key) host(h *host) {
	k.text(h.role, h.gate, h.qemu)
	k.flags(h.exists, h.up, h.off, h.declared, h.unsaid, h.copying, h.killed)
	k.numbers(uint64(h.epoch), uint64(h.told), h.newest)
}

func (w *world) clone() *world {
	next := *w
	next.sent, next.said = slices.Clone(w.sent), slices.Clone(w.said)
	next.flaw, next.same = "", false
	return &next
}

// say makes a report that may be heard from now on.
func (w *world) say(r report) {
	if at, known := slices.BinarySearchFunc(w.said, r, compareReports); !known {
		w.said = slices.Insert(w.said, at, r)
	}
}

func compareReports(a, b report) int {
	flags := func(r report) int {
		return map[bool]int{true: 1}[r.gone] + map[bool]int{true: 2}[r.unrun]
	}
	return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.answers, b.answers), cmp.Compare(flags(a), flags(b)))
}

// inEffect: its vCPUs run and what they send gets out.
func (h *host) inEffect() bool { return h.qemu == runs && h.gate == open }

// wrong notes what a step has done that must not be.
func (w *world) wrong(is bool, flaw string) {
	if is && w.flaw == "" {
		w.flaw = flaw
	}
}

func (h *host) alive() bool { return h.qemu != none && h.qemu != dead }
