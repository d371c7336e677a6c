package main

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"godwit.dev/godwit/internal/lab/load"
	"godwit.dev/godwit/internal/lab/witness"
)

const (
	// workEvery is how often the worker wakes to do its share.
	workEvery = 10 * time.Millisecond
	// atOnce is how many units are done together.
	atOnce = 16
)

// trade does the work of one kind of load.
type trade interface {
	// prepare makes ready for a load. A refused one changes nothing.
	prepare(l witness.Load) error
	// do does some units of a load, by their numbers in the set.
	do(units []int, l witness.Load) error
	// close gives back what is held.
	close()
}

// worker does a guest's work, in a goroutine of its own that alone knows the trade and
// the schedule.
type worker struct {
	clock  func() time.Duration
	orders chan order
	noise  *witness.Noise

	kind     witness.Kind
	trade    trade
	schedule *load.Schedule

	work, pages atomic.Uint64

	mu   sync.Mutex
	seen witness.LoadReport // but for work and pages
}

// order is a load, and where to say that it has begun.
type order struct {
	load  witness.Load
	begun chan error
}

func newWorker(clock func() time.Duration) *worker {
	noise := witness.Noise(time.Now().UnixNano())
	w := &worker{clock: clock, orders: make(chan order, 1), noise: &noise}
	w.rest()
	return w
}

// rest makes it a worker without work.
func (w *worker) rest() {
	w.kind, w.trade = witness.Memory, newTrade(witness.Memory, w.noise)
	w.schedule = load.New(witness.Load{}, w.clock(), w.noise)
}

func newTrade(kind witness.Kind, noise *witness.Noise) trade {
	switch kind {
	case witness.Redis:
		return &redis{noise: noise}
	case witness.Compile:
		return &compiler{}
	}
	return &memory{noise: noise}
}

// set changes the load, and waits until the worker has made ready for it. While it does
// so, nothing is done.
func (w *worker) set(l witness.Load) error {
	o := order{load: l, begun: make(chan error, 1)}
	w.orders <- o
	return <-o.begun
}

func (w *worker) run() {
	for tick := time.NewTicker(workEvery); ; {
		select {
		case o := <-w.orders:
			o.begun <- w.begin(o.load)
		case <-tick.C:
			for again := true; again && len(w.orders) == 0; {
				again = w.turn()
				runtime.Gosched()
			}
		}
	}
}

// begin makes ready for a load, and begins its schedule.
func (w *worker) begin(l witness.Load) error {
	if err := l.Valid(); err != nil {
		return err
	}
	t := w.trade
	if l.Kind != w.kind {
		t = newTrade(l.Kind, w.noise)
	}
	if err := t.prepare(l); err != nil {
		if t != w.trade {
			t.close()
		}
		return err
	}
	if t != w.trade {
		w.trade.close()
		w.kind, w.trade = l.Kind, t
	}
	w.schedule = load.New(l, w.clock(), w.noise)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = witness.LoadReport{Load: l}
	w.note()
	return nil
}

// note takes down the schedule's phase.
func (w *worker) note() {
	number, begun := w.schedule.Phase()
	w.seen.Phase, w.seen.PhaseBegun = number, int64(begun)
}

// turn does what is due, and says whether there is more.
func (w *worker) turn() (again bool) {
	due, again := w.schedule.Due(w.clock())
	w.mu.Lock()
	w.note()
	w.mu.Unlock()
	for due > 0 {
		var units [atOnce]int
		n := min(due, atOnce)
		for i := range units[:n] {
			units[i] = w.schedule.Next()
		}
		if err := w.trade.do(units[:n], w.schedule.Load()); err != nil {
			w.fail(err)
			return false
		}
		w.work.Add(uint64(n))
		if w.kind == witness.Memory {
			w.pages.Add(uint64(n))
		}
		due -= n
	}
	return again
}

// fail ends a load that can't go on.
func (w *worker) fail(err error) {
	w.trade.close()
	w.rest()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = witness.LoadReport{Error: err.Error()}
	w.note()
}

func (w *worker) report() witness.LoadReport {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.seen
	r.Work, r.Pages = w.work.Load(), w.pages.Load()
	return r
}

// memory writes whole pages of its own memory.
type memory struct {
	noise *witness.Noise
	all   []byte
}

// prepare makes the memory as large as all phases need, and fills what is new: as the
// first phase will. Memory that is there stays, so that a change of load writes nothing
// but its own.
func (m *memory) prepare(l witness.Load) error {
	size, had := l.Set(), len(m.all)
	if size <= had {
		return nil
	}
	if err := enoughMemory(size - had); err != nil {
		return err
	}
	var all []byte
	var err error
	if had == 0 {
		all, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	} else {
		all, err = unix.Mremap(m.all, size, unix.MREMAP_MAYMOVE)
	}
	if err != nil {
		return fmt.Errorf("map %d MiB: %w", size>>20, err)
	}
	m.all = all
	for at := had; at < size; at += witness.PageSize {
		load.Fill(m.all[at:at+witness.PageSize], l.ZeroPercent, m.noise)
	}
	return nil
}

func (m *memory) do(units []int, l witness.Load) error {
	for _, page := range units {
		load.Fill(m.all[page*witness.PageSize:(page+1)*witness.PageSize], l.ZeroPercent, m.noise)
	}
	return nil
}

func (m *memory) close() {
	if m.all != nil {
		_ = unix.Munmap(m.all) // of what was mapped as it is
	}
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
		return fmt.Errorf("%d MiB more do not fit: %d MiB are free", growth>>20, free>>20)
	}
	return nil
}
