package probe

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"godwit.dev/godwit/internal/lab/witness"
)

// maxPackets bounds the memory of a run, about 100 MB: 14 minutes at 5,000
// packets a second.
const maxPackets = 1 << 22

// errTooLong says that a run has used up maxPackets.
var errTooLong = errors.New("the probe has sent as many packets as it can remember")

// Mark is a moment in a run.
type Mark struct {
	At   time.Time
	next uint64 // sequence number of the first packet after it
	lost uint32 // replies that the socket had dropped by then
}

// Quantiles are of the round-trip times of the packets that came back.
type Quantiles struct {
	P50 time.Duration `json:"p50_ns"`
	P90 time.Duration `json:"p90_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

// UDPResult is what became of the packets sent within a window.
type UDPResult struct {
	Sent       uint64 `json:"sent"`
	Lost       uint64 `json:"lost"`       // no reply
	Duplicated uint64 `json:"duplicated"` // replies beyond each packet's first
	Reordered  uint64 `json:"reordered"`  // answered after a later packet was
	Corrupted  uint64 `json:"corrupted"`  // answered with other bytes than were sent
	// Replayed packets were answered with a counter of the guest's that had
	// been given to another packet before: the guest ran twice from one state.
	Replayed uint64 `json:"replayed"`
	Reboots  uint64 `json:"reboots"` // the guest's boot number changed
	// LongestGap is the longest time without any reply, by the kernel's
	// receive time, within the window and up to its edges.
	LongestGap time.Duration `json:"longest_gap_ns"`
	RTT        Quantiles     `json:"rtt"`

	// About the probe itself.
	LongestSendGap time.Duration `json:"longest_send_gap_ns"`
	SendFailed     uint64        `json:"send_failed"` // the kernel refused them; they count as sent and lost
	OwnDrops       uint64        `json:"own_drops"`   // replies the probe's socket had no room for
}

// Loss is packets that were sent one after the other and all lost.
type Loss struct {
	First time.Time `json:"first"` // when the first was sent
	Last  time.Time `json:"last"`
	Count uint64    `json:"count"`
}

// record is what is known of one packet. Times are wall-clock ns.
type record struct {
	sent     int64
	received int64 // first reply; 0 without one
	copies   uint16
	marks    flags
}

type flags uint8

const (
	reordered flags = 1 << iota
	corrupted
	replayed
	rebooted
	sendFailed
)

// reply is one packet that came back.
type reply struct {
	packet witness.Packet
	at     int64
	intact bool
}

// history remembers every packet of a run.
type history struct {
	mu       sync.Mutex
	records  []record // of sequence number index+1
	highest  uint64   // sequence number answered
	answered uint64   // packets with a reply
	counters witness.Window
	boot     uint64
	dropped  uint32 // by the socket
	waiters  []*waiter
}

// waiter waits until left more packets of [from, to) are answered.
type waiter struct {
	from, to, left uint64
	done           chan struct{}
}

// send notes a packet about to be sent and gives its sequence number.
func (h *history) send(at int64) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.records) == maxPackets {
		return 0, errTooLong
	}
	h.records = append(h.records, record{sent: at})
	return uint64(len(h.records)), nil
}

func (h *history) sendFailed(sequence uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records[sequence-1].marks |= sendFailed
}

// receive notes a reply. One to a packet that was never sent is not ours.
func (h *history) receive(r reply) {
	h.mu.Lock()
	defer h.mu.Unlock()
	sequence := r.packet.Sequence
	if sequence == 0 || sequence > uint64(len(h.records)) {
		return
	}
	rec := &h.records[sequence-1]
	if !r.intact {
		rec.marks |= corrupted
	}
	if h.boot != r.packet.Boot {
		if h.boot != 0 {
			rec.marks |= rebooted
		}
		h.boot, h.counters = r.packet.Boot, witness.Window{}
	}
	fresh := h.counters.Add(r.packet.Counter)
	if rec.copies < 1<<16-1 {
		rec.copies++
	}
	if rec.copies > 1 {
		return
	}
	if !fresh {
		rec.marks |= replayed
	}
	if sequence < h.highest {
		rec.marks |= reordered
	}
	h.highest = max(h.highest, sequence)
	rec.received = r.at
	h.answered++
	h.notify(sequence)
}

func (h *history) notify(sequence uint64) {
	h.waiters = slices.DeleteFunc(h.waiters, func(w *waiter) bool {
		if sequence < w.from || sequence >= w.to {
			return false
		}
		w.left--
		if w.left == 0 {
			close(w.done)
		}
		return w.left == 0
	})
}

func (h *history) mark(at time.Time) Mark {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Mark{At: at, next: uint64(len(h.records)) + 1, lost: h.dropped}
}

func (h *history) drops(total uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dropped = total
}

// await waits until count packets of [from, to) are answered, or all of them
// if count is 0, or ctx ends.
func (h *history) await(ctx context.Context, from, to, count uint64) error {
	w := &waiter{from: from, to: to, done: make(chan struct{})}
	h.mu.Lock()
	var missing, have uint64
	for i := from; i < min(to, uint64(len(h.records))+1); i++ {
		if h.records[i-1].copies == 0 {
			missing++
		} else {
			have++
		}
	}
	w.left = missing
	if count > 0 {
		w.left = count - min(count, have)
	}
	if w.left == 0 {
		h.mu.Unlock()
		return nil
	}
	h.waiters = append(h.waiters, w)
	h.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiters = slices.DeleteFunc(h.waiters, func(other *waiter) bool { return other == w })
		return ctx.Err()
	}
}

// result counts the packets sent between two marks.
func (h *history) result(from, to Mark) UDPResult {
	h.mu.Lock()
	defer h.mu.Unlock()
	window := h.records[from.next-1 : to.next-1]
	r := UDPResult{Sent: uint64(len(window)), OwnDrops: uint64(to.lost - from.lost)}
	var trips, arrivals []int64
	previous := from.At.UnixNano()
	for _, rec := range window {
		r.LongestSendGap = max(r.LongestSendGap, time.Duration(rec.sent-previous))
		previous = rec.sent
		r.count(rec)
		if rec.received != 0 {
			trips = append(trips, rec.received-rec.sent)
			arrivals = append(arrivals, rec.received)
		}
	}
	slices.Sort(trips)
	slices.Sort(arrivals)
	r.RTT = quantiles(trips)
	r.LongestGap = longestGap(h.before(from), arrivals, to.At.UnixNano())
	return r
}

// losses gives the packets sent between two marks that have no reply.
func (h *history) losses(from, to Mark) (all []Loss) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := false // the packet before was lost, too
	for _, rec := range h.records[from.next-1 : to.next-1] {
		if rec.copies == 0 {
			at := time.Unix(0, rec.sent)
			if !before {
				all = append(all, Loss{First: at})
			}
			last := &all[len(all)-1]
			last.Last, last.Count = at, last.Count+1
		}
		before = rec.copies == 0
	}
	return all
}

func (r *UDPResult) count(rec record) {
	one := func(bit flags) uint64 {
		if rec.marks&bit != 0 {
			return 1
		}
		return 0
	}
	r.Reordered += one(reordered)
	r.Corrupted += one(corrupted)
	r.Replayed += one(replayed)
	r.Reboots += one(rebooted)
	r.SendFailed += one(sendFailed)
	if rec.copies == 0 {
		r.Lost++
	} else {
		r.Duplicated += uint64(rec.copies - 1)
	}
}

// before gives the time of the reply before a mark, or the mark's own time if
// there was none.
func (h *history) before(m Mark) int64 {
	for i := m.next - 1; i > 0; i-- {
		if at := h.records[i-1].received; at != 0 {
			return min(at, m.At.UnixNano())
		}
	}
	return m.At.UnixNano()
}

// longestGap of sorted arrivals, and from the last arrival before them to the
// end of the window.
func longestGap(last int64, arrivals []int64, end int64) time.Duration {
	var gap int64
	for _, at := range arrivals {
		gap = max(gap, at-last)
		last = at
	}
	return time.Duration(max(gap, end-last))
}

// quantiles of sorted values, by the nearest rank.
func quantiles(sorted []int64) Quantiles {
	if len(sorted) == 0 {
		return Quantiles{}
	}
	at := func(percent int) time.Duration {
		return time.Duration(sorted[(len(sorted)*percent+99)/100-1])
	}
	return Quantiles{P50: at(50), P90: at(90), P99: at(99), Max: at(100)}
}
