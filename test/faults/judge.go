package main

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"godwit.dev/godwit/internal/lab/probe"
)

const (
	// switchMax is the deadline of a switch, and pauseMax what the guest may
	// stand still as its client sees it, if one host with the VM and one path
	// survive.
	switchMax = 3 * time.Second
	pauseMax  = switchMax + time.Second
	// volumeAgain is how long it may take until a guest that a volume server's absence
	// has stopped is let go on.
	volumeAgain = 10 * time.Second
	// aroundCut is for packets that were sent before a link was cut and are on it,
	// or wait to be sent by it, as the hosts switch.
	aroundCut = time.Second
	// sayMost bounds how many violations of one kind are told of a cell.
	sayMost = 3
)

// Kinds of violations after which the lab is not as it was.
const (
	notBack    = "not back"
	leftBehind = "left behind"
)

// evidence is all that the checks look at.
type evidence struct {
	frames         []sighting
	disks          []written
	client         probe.UDPResult
	doubled        uint64 // packets that came to the guest more than once
	source, target netip.Addr
	movedTo        bool // the record says that the target was given the VM, and kept it
}

// findings gathers violations, not more than a few of each kind.
type findings struct {
	list  []string
	kinds map[string]int
}

func (f *findings) add(kind, format string, args ...any) {
	if f.kinds == nil {
		f.kinds = map[string]int{}
	}
	if f.kinds[kind]++; f.kinds[kind] <= sayMost {
		f.list = append(f.list, kind+": "+fmt.Sprintf(format, args...))
	}
}

// checkEpochs: the guest's frames come from the source first and then, if it
// has moved, from the target, and never again from the other.
func (e evidence) checkEpochs(f *findings) {
	var moved time.Time
	for _, one := range e.frames {
		switch {
		case one.host == e.target && !e.movedTo:
			f.add("never two", "a frame left the target, which has no right to the VM, at %s", clock(one.at))
		case one.host == e.target && moved.IsZero():
			moved = one.at
		case one.host == e.source && !moved.IsZero():
			f.add("never two", "a frame left the source at %s, after the target's first at %s", clock(one.at), clock(moved))
		case one.host != e.source && one.host != e.target:
			f.add("never two", "a frame left %s, which has nothing to do with the VM", one.host)
		}
	}
}

// checkTurns does that for many migrations: the guest's frames come from the one
// host and then from the other, in no more turns than the records tell of.
func (e evidence) checkTurns(f *findings, most int) {
	turns, last := 0, e.source
	for _, one := range e.frames {
		if one.host != e.source && one.host != e.target {
			f.add("never two", "a frame left %s, which has nothing to do with the VM", one.host)
			continue
		}
		if one.host == last {
			continue
		}
		last = one.host
		if turns++; turns > most {
			f.add("never two", "a frame left %s at %s, and the VM was given to the other host %d times only", one.host, clock(one.at), most)
		}
	}
}

func clock(at time.Time) string { return at.UTC().Format("15:04:05.000000") }

// checkReplies: the guest gives no number twice.
func (e evidence) checkReplies(f *findings) {
	nonces := map[uint64]uint64{} // by the guest's counter
	for _, one := range e.frames {
		if one.reply == nil {
			continue
		}
		before, known := nonces[one.reply.Counter]
		if known && before != one.reply.Nonce {
			f.add("ran twice", "the guest has given number %d to two replies", one.reply.Counter)
		}
		nonces[one.reply.Counter] = one.reply.Nonce
	}
}

// checkDisks: what was acknowledged is there, and nobody wrote over it.
func (e evidence) checkDisks(f *findings) {
	for _, disk := range e.disks {
		disk.check(f)
	}
	if len(e.disks) > 0 {
		e.checkReported(e.disks[0], f)
	}
}

// check: no record that was there has gone, or was replaced.
func (w written) check(f *findings) {
	for i, record := range w.last {
		switch first := w.first[i]; {
		case record.Sequence != first.Sequence:
			f.add("write lost", "record %d is not on disk %s any more", first.Sequence, w.name)
		case record.Nonce != first.Nonce:
			f.add("ran twice", "record %d was written to disk %s twice, with nonces %x and %x", first.Sequence, w.name, first.Nonce, record.Nonce)
		}
	}
	if w.acknowledged > uint64(len(w.last)) {
		f.add("write lost", "record %d was acknowledged by disk %s; the last on it is %d", w.acknowledged, w.name, len(w.last))
	}
}

// checkReported: what the guest's replies say of its first disk is on it.
func (e evidence) checkReported(disk written, f *findings) {
	for _, one := range e.frames {
		if one.reply == nil || one.reply.Written == 0 {
			continue
		}
		acknowledged, nonce := one.reply.Written, one.reply.WrittenNonce
		switch {
		case acknowledged > uint64(len(disk.last)):
			f.add("write lost", "record %d was acknowledged; the last on disk %s is %d", acknowledged, disk.name, len(disk.last))
		case disk.last[acknowledged-1].Nonce != nonce:
			f.add("write lost", "record %d was acknowledged with nonce %x; on disk %s it is %x", acknowledged, nonce, disk.name, disk.last[acknowledged-1].Nonce)
		}
	}
}

// records is how many there are on all disks.
func (e evidence) records() (n int) {
	for _, disk := range e.disks {
		n += len(disk.last)
	}
	return n
}

// pauseLimit is how long the guest may stand still, as its client sees it. One whose
// volume server is away may wait for it.
func (c cell) pauseLimit() time.Duration {
	if c.Victim.isVolume() {
		return pauseMax + deadFor + volumeAgain
	}
	return pauseMax
}

// straggle is how long a packet may be on its way before it counts as lost.
func (c cell) straggle() time.Duration { return max(10*time.Second, 2*c.pauseLimit()) }

// mayLose is how many packets may be lost, if the fault cut a link for some time.
func (c cell) mayLose(cut time.Duration) uint64 {
	switch {
	case c.killsOwner():
		return math.MaxUint64
	case c.cutsFrames():
		return uint64((cut + aroundCut).Seconds() * rate)
	}
	return 0
}

// checkPackets: none is doubled, broken or lost, but those that had to be.
func (e evidence) checkPackets(f *findings, mayLose uint64) {
	if n := e.client.Duplicated; n > 0 {
		f.add("packet doubled", "%d replies came more than once", n)
	}
	if e.doubled > 0 {
		f.add("packet doubled", "%d packets came to the guest more than once", e.doubled)
	}
	if e.client.Corrupted+e.client.Replayed+e.client.Reboots > 0 {
		f.add("packet broken", "%d corrupted, %d replayed, %d of another boot", e.client.Corrupted, e.client.Replayed, e.client.Reboots)
	}
	if e.client.Lost > mayLose {
		f.add("packet lost", "%d of %d, and no host died that held them; a link that was cut may have had %d", e.client.Lost, e.client.Sent, mayLose)
	}
}
