package witness

import (
	"slices"
	"sync"
	"time"
)

// windowSize is how many sequence numbers behind the highest a Window still
// tells apart: 13 s of traffic at 5,000 packets a second, in 8 KiB.
const windowSize = 1 << 16

// Window remembers which of the latest sequence numbers have been seen.
type Window struct {
	bits    [windowSize / 64]uint64
	highest uint64
}

// Add notes n and says whether it is new. A number too old to be remembered
// counts as seen, so that a duplicate is never taken for a first copy.
func (w *Window) Add(n uint64) (fresh bool) {
	if n > w.highest {
		w.forget(n)
		w.highest = n
	}
	if w.highest-n >= windowSize {
		return false
	}
	word, bit := &w.bits[n%windowSize/64], uint64(1)<<(n%64)
	fresh = *word&bit == 0
	*word |= bit
	return fresh
}

// forget clears the numbers between the highest and n, whose places are still
// held by numbers one window older.
func (w *Window) forget(n uint64) {
	if n-w.highest >= windowSize {
		w.bits = [windowSize / 64]uint64{}
		return
	}
	for i := w.highest + 1; i <= n; i++ {
		w.bits[i%windowSize/64] &^= 1 << (i % 64)
	}
}

// Flow is what the guest has seen of one run of one client.
type Flow struct {
	Flow       uint64 `json:"flow"`
	First      uint64 `json:"first"`      // lowest sequence number seen
	Highest    uint64 `json:"highest"`    // highest sequence number seen
	Received   uint64 `json:"received"`   // packets, each copy counted
	Duplicated uint64 `json:"duplicated"` // packets beyond the first of their number
	Reordered  uint64 `json:"reordered"`  // first copies that came after a higher number
	LongestGap int64  `json:"longest_gap_ns"`
}

// Lost is how many numbers between the first and the highest never came.
// Packets still on their way count as lost.
func (f Flow) Lost() uint64 {
	if f.Received == 0 {
		return 0
	}
	return f.Highest - f.First + 1 - (f.Received - f.Duplicated)
}

// maxFlows is how many flows a Ledger keeps; the one longest idle gives way.
const maxFlows = 64

// Ledger counts the packets a guest handles, by flow, and numbers them.
type Ledger struct {
	mu           sync.Mutex
	counter      uint64
	written      uint64 // sequence number of a disk record
	writtenNonce uint64
	flows        map[uint64]*flowEntry
}

type flowEntry struct {
	Flow
	window Window
	last   time.Duration
}

// NewLedger gives an empty ledger.
func NewLedger() *Ledger { return &Ledger{flows: make(map[uint64]*flowEntry)} }

// Note counts one packet of a flow, received at now on the guest's monotonic
// clock, and gives the packet's number.
func (l *Ledger) Note(flow, sequence uint64, now time.Duration) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counter++
	e := l.flows[flow]
	if e == nil {
		e = l.open(flow, sequence, now)
	}
	e.LongestGap = max(e.LongestGap, int64(now-e.last))
	e.last = now
	e.Received++
	behind := sequence < e.window.highest
	switch fresh := e.window.Add(sequence); {
	case !fresh:
		e.Duplicated++
	case behind:
		e.Reordered++
	}
	e.First = min(e.First, sequence)
	e.Highest = max(e.Highest, sequence)
	return l.counter
}

func (l *Ledger) open(flow, sequence uint64, now time.Duration) *flowEntry {
	if len(l.flows) == maxFlows {
		var oldest *flowEntry
		for _, e := range l.flows {
			if oldest == nil || e.last < oldest.last {
				oldest = e
			}
		}
		delete(l.flows, oldest.Flow.Flow)
	}
	e := &flowEntry{Flow: Flow{Flow: flow, First: sequence}, last: now}
	l.flows[flow] = e
	return e
}

// Counter is the number of packets counted so far.
func (l *Ledger) Counter() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counter
}

// Wrote notes that the first disk has acknowledged a record.
func (l *Ledger) Wrote(r Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written, l.writtenNonce = r.Sequence, r.Nonce
}

// Written gives the last record that the first disk has acknowledged.
func (l *Ledger) Written() (sequence, nonce uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written, l.writtenNonce
}

// Flows gives every flow kept, by id.
func (l *Ledger) Flows() []Flow {
	l.mu.Lock()
	defer l.mu.Unlock()
	flows := make([]Flow, 0, len(l.flows))
	for _, e := range l.flows {
		flows = append(flows, e.Flow)
	}
	slices.SortFunc(flows, func(a, b Flow) int {
		if a.Flow < b.Flow {
			return -1
		}
		return 1
	})
	return flows
}
