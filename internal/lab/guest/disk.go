package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab/witness"
)

// pulse is a 1 ms ticker that remembers the longest time between two ticks:
// the longest pause that the guest itself has noticed.
type pulse struct {
	ticks   atomic.Uint64
	longest atomic.Int64
}

func (p *pulse) run() {
	last := time.Now()
	for range time.Tick(time.Millisecond) {
		now := time.Now()
		p.ticks.Add(1)
		p.longest.Store(max(p.longest.Load(), int64(now.Sub(last))))
		last = now
	}
}

func (p *pulse) read() (ticks uint64, longest time.Duration) {
	return p.ticks.Load(), time.Duration(p.longest.Load())
}

// diskWriter writes numbered records to a disk, each acknowledged by the
// device before the next.
type diskWriter struct {
	file   *os.File
	blocks uint64
	every  time.Duration
	block  []byte // page-aligned, as O_DIRECT wants it
	enough chan struct{}
	ended  chan struct{}

	mu   sync.Mutex
	seen witness.DiskReport
}

// openDisks opens all disks that there are.
func openDisks(rate int) (disks []*diskWriter, err error) {
	for letter := 'a'; letter <= 'z'; letter++ {
		disk, err := openDisk("/dev/vd"+string(letter), rate)
		if len(disks) > 0 && errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		disks = append(disks, disk)
	}
	return disks, nil
}

func openDisk(path string, rate int) (*diskWriter, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0)
	if err != nil {
		return nil, err
	}
	size, err := file.Seek(0, 2)
	if err != nil {
		return nil, err
	}
	if size < witness.BlockSize {
		return nil, fmt.Errorf("%s: %d bytes hold no record", path, size)
	}
	block, err := unix.Mmap(-1, 0, witness.BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	return &diskWriter{
		file: file, block: block,
		blocks: uint64(size) / witness.BlockSize,
		every:  time.Second / time.Duration(rate),
		enough: make(chan struct{}), ended: make(chan struct{}),
	}, nil
}

// end ends the writing, and lets go of the disk.
func (w *diskWriter) end() {
	close(w.enough)
	<-w.ended
	w.file.Close()
}

// run writes until the end, and tells of each record that the disk has acknowledged.
func (w *diskWriter) run(g *guest, acknowledged func(witness.Record)) {
	defer close(w.ended)
	var record witness.Record
	var nonces witness.Nonces
	for tick := time.NewTicker(w.every); ; {
		select {
		case <-tick.C:
		case <-w.enough:
			tick.Stop()
			return
		}
		if next := w.report().Written + 1; next != record.Sequence { // else it failed, and is written again as it was
			now := g.clock()
			record = witness.Record{
				Sequence: next, Boot: g.boot, Clock: int64(now), Counter: g.ledger.Counter(), Nonce: nonces.Draw(now),
			}
			record.Marshal(w.block)
		}
		begun := time.Now()
		_, err := w.file.WriteAt(w.block, int64(record.Sequence%w.blocks)*witness.BlockSize)
		w.note(record.Sequence, time.Since(begun), err)
		if err == nil {
			acknowledged(record)
		}
	}
}

// note keeps the outcome of a write. A failed record is written again under
// the same number.
func (w *diskWriter) note(sequence uint64, took time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.LongestWait = max(w.seen.LongestWait, int64(took))
	if err != nil {
		w.seen.Errors++
		w.seen.LastError = err.Error()
		return
	}
	w.seen.Written = sequence
}

func (w *diskWriter) report() witness.DiskReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen
}
