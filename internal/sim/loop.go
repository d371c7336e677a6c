package sim

import (
	"container/heap"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"iter"
	"math/rand/v2"
	"runtime/debug"
	"time"
)

// loop is the virtual machine room: one clock, one queue of events, one source
// of chance. Everything happens in the goroutine that calls run, or in a task
// that it has handed on to, so what happens is a function of the seed.
type loop struct {
	now    time.Duration // since the beginning
	queue  eventQueue
	serial uint64
	chance *rand.Rand
	task   *task // that runs now; nil for the loop itself
	digest uint64
	trace  io.Writer // nil: none
}

// epochStart is the instant at which every simulation begins.
var epochStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newLoop(seed uint64, trace io.Writer) *loop {
	return &loop{chance: rand.New(rand.NewPCG(seed, 0x60d517)), trace: trace, digest: fnv.New64a().Sum64()}
}

// event is something that is to happen at a time; at the same time the older
// one is first.
type event struct {
	at     time.Duration
	serial uint64
	proc   *proc // whose doing it is; nil for the world's
	life   int   // of the process
	do     func()
}

type eventQueue []*event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].serial < q[j].serial
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(e any)   { *q = append(*q, e.(*event)) }
func (q *eventQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return last
}

// proc is a process. What it has begun ends with it, and waits while it hangs.
type proc struct {
	name  string
	up    bool
	life  int           // counts its starts
	hangs time.Duration // until then
	tasks map[*task]struct{}
}

func newProc(name string) *proc { return &proc{name: name, tasks: map[*task]struct{}{}} }

// begin starts the process anew.
func (p *proc) begin() {
	p.life++
	p.up, p.hangs = true, 0
}

// end is a crash: what was under way is no more. The order in which the tasks
// unwind is that of their beginning.
func (l *loop) end(p *proc) {
	p.up = false
	p.life++
	l.unwind(p)
}

func (l *loop) unwind(p *proc) {
	for len(p.tasks) > 0 {
		var first *task
		for t := range p.tasks {
			if first == nil || t.serial < first.serial {
				first = t
			}
		}
		l.kill(first)
	}
}

// at has p do something later, unless it has ended before; nil is the world.
func (l *loop) at(p *proc, after time.Duration, do func()) (stop func()) {
	l.serial++
	e := &event{at: l.now + max(0, after), serial: l.serial, proc: p, do: do}
	if p != nil {
		e.life = p.life
	}
	heap.Push(&l.queue, e)
	return func() { e.do = nil }
}

// run lets everything happen until a time.
func (l *loop) run(until time.Duration) {
	for len(l.queue) > 0 && l.queue[0].at <= until {
		e := heap.Pop(&l.queue).(*event)
		if e.do == nil || e.proc != nil && (!e.proc.up || e.proc.life != e.life) {
			continue
		}
		if e.proc != nil && e.proc.hangs > e.at {
			e.at = e.proc.hangs
			heap.Push(&l.queue, e)
			continue
		}
		l.now = e.at
		l.digest = (l.digest ^ uint64(e.at) ^ e.serial<<32) * 1099511628211 // as FNV-1a mixes
		e.do()
	}
	l.now = max(l.now, until)
}

// task is something that waits in between: a coroutine of the loop.
type task struct {
	loop   *loop
	proc   *proc
	serial uint64
	resume func() (struct{}, bool)
	stop   func()
	yield  func(struct{}) bool
	value  any // that it was resumed with
	killed bool
}

// errKilled unwinds a task whose process has ended.
var errKilled = errors.New("the process has ended")

// spawn has p do something that may wait.
func (l *loop) spawn(p *proc, do func()) *task {
	l.serial++
	t := &task{loop: l, proc: p, serial: l.serial}
	p.tasks[t] = struct{}{}
	t.resume, t.stop = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if cause := recover(); cause != nil && cause != any(errKilled) {
				panic(fmt.Sprintf("%v\n%s", cause, debug.Stack())) // the stack of the task is not the loop's
			}
		}()
		t.yield = yield
		do()
	})
	l.at(p, 0, func() { l.step(t) })
	return t
}

// step lets a task run to its next wait, or its end.
func (l *loop) step(t *task) {
	if t.killed {
		return
	}
	before := l.task
	l.task = t
	_, goesOn := t.resume()
	l.task = before
	if !goesOn {
		delete(t.proc.tasks, t)
	}
}

// kill ends a task where it waits.
func (l *loop) kill(t *task) {
	delete(t.proc.tasks, t)
	if t.killed {
		return
	}
	t.killed = true
	before := l.task
	l.task = t
	t.stop()
	l.task = before
}

// park waits to be resumed and gives the value of that.
func (l *loop) park() any {
	t := l.task
	if t.killed || !t.yield(struct{}{}) {
		panic(errKilled)
	}
	return t.value
}

// await begins something and waits until that calls done; only the first call
// counts. The process takes notice as its own event: one that hangs does so
// later.
func (l *loop) await(begin func(done func(any))) any {
	t, answered := l.task, false
	begin(func(value any) {
		if answered {
			return
		}
		answered = true
		l.at(t.proc, 0, func() {
			t.value = value
			l.step(t)
		})
	})
	return l.park()
}

func (l *loop) sleep(d time.Duration) {
	l.await(func(done func(any)) { l.at(l.task.proc, d, func() { done(nil) }) })
}

// bell is what one task waits for.
type bell struct{ wake func(any) }

func (b *bell) ring() {
	if b.wake != nil {
		b.wake(nil)
	}
}

func (b *bell) wait(l *loop) {
	l.await(func(done func(any)) { b.wake = done })
	b.wake = nil
}

// mailbox is a queue that one task takes from.
type mailbox[T any] struct {
	bell
	items []T
}

func (m *mailbox[T]) put(item T) {
	m.items = append(m.items, item)
	m.ring()
}

// next waits for the next item. There is none once the mailbox is closed and
// empty; whoever closes it rings.
func (m *mailbox[T]) next(l *loop, closed func() bool) (item T, some bool) {
	for len(m.items) == 0 {
		if closed() {
			return item, false
		}
		m.wait(l)
	}
	item = m.items[0]
	m.items = m.items[1:]
	return item, true
}

// lock is a mutex of tasks.
type lock struct {
	loop  *loop
	held  bool
	queue []func(any)
}

func (k *lock) Lock() {
	if !k.held {
		k.held = true
		return
	}
	k.loop.await(func(done func(any)) { k.queue = append(k.queue, done) })
}

// Unlock hands the lock on to whoever waits longest.
func (k *lock) Unlock() {
	if len(k.queue) == 0 {
		k.held = false
		return
	}
	next := k.queue[0]
	k.queue = k.queue[1:]
	next(nil)
}

// between gives a time from a range, all alike.
func (l *loop) between(least, most time.Duration) time.Duration {
	return least + time.Duration(l.chance.Int64N(int64(most-least)+1))
}

// one in n.
func (l *loop) one(n int) bool { return l.chance.IntN(n) == 0 }

func (l *loop) tell(format string, values ...any) {
	if l.trace != nil {
		fmt.Fprintf(l.trace, "%12.6f ", l.now.Seconds())
		fmt.Fprintf(l.trace, format, values...)
		fmt.Fprintln(l.trace)
	}
}
