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

const (
	pageSize = 4096
	// dirtyEvery is how often the dirtier wakes to write its share.
	dirtyEvery = 10 * time.Millisecond
	// dirtyShare bounds what it writes at one waking, so that a machine that
	// stood still does not make up for it in one go.
	dirtyShare = 4 * dirtyEvery
)

// dirtier writes whole pages of incompressible bytes into its own memory.
type dirtier struct {
	mu     sync.Mutex
	load   witness.Dirty
	memory []byte
	noise  witness.Noise
	next   int // page, for Sequential
	pages  uint64
}

func newDirtier() *dirtier { return &dirtier{noise: witness.Noise(time.Now().UnixNano())} }

// set changes the load. Memory of another size is mapped anew, and filled.
func (d *dirtier) set(load witness.Dirty) error {
	if err := load.Valid(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if size := load.SetMiB << 20; size != len(d.memory) {
		if err := d.remap(size); err != nil {
			return err
		}
	}
	d.load, d.next = load, 0
	return nil
}

// remap changes the size of the memory. A refused size changes nothing.
func (d *dirtier) remap(size int) error {
	if err := enoughMemory(size - len(d.memory)); err != nil {
		return err
	}
	var memory []byte
	if size > 0 {
		var err error
		memory, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return fmt.Errorf("map %d MiB: %w", size>>20, err)
		}
	}
	old := d.memory
	d.memory = memory
	if old != nil {
		if err := unix.Munmap(old); err != nil {
			return fmt.Errorf("unmap: %w", err)
		}
	}
	d.noise.Fill(d.memory) // after the old has gone: both need not fit
	return nil
}

// enoughMemory refuses growth that would have the kernel kill this process.
func enoughMemory(growth int) error {
	if growth <= 0 {
		return nil
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return err
	}
	free := info.Freeram * uint64(info.Unit)
	const reserve = 8 << 20
	if uint64(growth)+reserve > free {
		return fmt.Errorf("%d MiB more to dirty do not fit: %d MiB are free", growth>>20, free>>20)
	}
	return nil
}

func (d *dirtier) run() {
	var owed float64 // pages
	last := time.Now()
	for range time.Tick(dirtyEvery) {
		now := time.Now()
		passed := min(now.Sub(last), dirtyShare)
		last = now
		d.mu.Lock()
		owed += passed.Seconds() * float64(d.load.RateMiB) * (1 << 20) / pageSize
		for ; owed >= 1 && d.load.RateMiB > 0; owed-- {
			d.writePage()
		}
		d.mu.Unlock()
	}
}

func (d *dirtier) writePage() {
	pages := len(d.memory) / pageSize
	var page int
	switch d.load.Pattern {
	case witness.Sequential:
		page = d.next
		d.next = (d.next + 1) % pages
	case witness.Hot:
		spread := pages
		if d.noise.Next()%10 != 0 {
			spread = max(1, pages/10)
		}
		page = int(d.noise.Next() % uint64(spread))
	default:
		page = int(d.noise.Next() % uint64(pages))
	}
	d.noise.Fill(d.memory[page*pageSize : (page+1)*pageSize])
	d.pages++
}

func (d *dirtier) report() witness.DirtyReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	return witness.DirtyReport{Dirty: d.load, Pages: d.pages}
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
