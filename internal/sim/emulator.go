package sim

import (
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/sim/check"
)

// blocksPerSecond is how fast a running guest writes its volume. What it has
// written is also what its memory knows.
const blocksPerSecond = 100

// What a QEMU says of its outgoing and incoming copy.
type copyState string

const (
	idle          copyState = ""
	active        copyState = "active"
	preSwitchover copyState = "pre-switchover" // the guest is stopped, and QEMU waits for leave
	device        copyState = "device"
	completed     copyState = "completed"
	failed        copyState = "failed"
	waiting       copyState = "waiting" // incoming: for the state
	loaded        copyState = "loaded"  // incoming: has all of it, paused
)

// emulator is one QEMU process. It is nobody's: it outlives agents.
type emulator struct {
	*world
	m       *machine
	birth   int
	alive   bool
	hangs   time.Duration // until then
	runs    bool          // its vCPUs are to
	counted bool          // they do, and that is counted since
	since   time.Duration
	count   int // the last block that its memory knows

	in, out  copyState
	byItself bool // it has stopped the guest for its copy, and runs it on if that fails
	stream   *stream
	listen   func(news) // the agent's
}

// news is an event of the monitor.
type news struct {
	kind         newsKind
	pass         int
	left, before float64 // bytes that the pass has to send, and the one before had
	cost         time.Duration
}

type newsKind string

const (
	passBegun     newsKind = "pass"
	guestHalted   newsKind = "stop" // without being told to
	preSwitched   newsKind = "pre-switchover"
	copyCompleted newsKind = "completed"
	copyFailed    newsKind = "failed"
	stateLoaded   newsKind = "loaded"
	stateBroke    newsKind = "broke"
	processDied   newsKind = "died"
)

func (w *world) startEmulator(m *machine, incoming bool) *emulator {
	w.births++
	q := &emulator{world: w, m: m, birth: w.births, alive: true}
	if incoming {
		q.in = waiting
	} else {
		q.count = w.guests.Volume(string(m.vm.name)) // a guest that boots reads its volume
	}
	m.q, m.killed = q, false
	return q
}

func (q *emulator) identity() check.Instance {
	return check.Instance{VM: string(q.m.vm.name), Epoch: uint64(q.m.epoch), Host: string(q.m.host.name), Birth: q.birth}
}

func (q *emulator) hung() bool { return q.hangs > q.now }

// account notes that the vCPUs began or stopped.
func (q *emulator) account() {
	runs := q.alive && q.runs && !q.hung()
	switch {
	case runs && !q.counted:
		q.guests.Runs(q.identity(), q.count)
		q.counted, q.since = true, q.now
	case !runs && q.counted:
		q.count += int((q.now - q.since).Seconds() * blocksPerSecond)
		q.guests.Stops(q.identity(), q.count)
		q.counted = false
	}
	q.m.judge()
	q.m.flush()
}

// hang stops the process for a time, as SIGSTOP does.
func (q *emulator) hang(d time.Duration) {
	q.hangs = q.now + d
	q.account()
	q.at(nil, d, q.account)
}

// say tells the agent, if one listens.
func (q *emulator) say(n news) {
	listen := q.listen
	if listen == nil {
		return
	}
	q.at(q.m.host.agent.proc, max(0, q.hangs-q.now)+q.between(50*time.Microsecond, 300*time.Microsecond), func() { listen(n) })
}

// die is the end of the process, whoever wanted it.
func (q *emulator) die() {
	if !q.alive {
		return
	}
	q.alive = false
	q.account()
	q.unlock()
	if q.stream != nil {
		q.stream.breakOff()
	}
	q.say(news{kind: processDied})
}

func (q *emulator) lock() error {
	if holder := q.m.vm.image; holder != nil && holder != q {
		q.guests.Fenced(q.identity(), holder.identity())
		return &fleet.Error{Code: fleet.Failed, Op: "run", Subject: "vm " + string(q.m.vm.name), Cause: "the image is locked"}
	}
	q.m.vm.image = q
	return nil
}

func (q *emulator) unlock() {
	if q.m.vm.image == q {
		q.m.vm.image = nil
	}
}

// commandWithin bounds the wait for a monitor that does not answer.
const commandWithin = 10 * time.Second

// command is one exchange on the monitor.
func (q *emulator) command(do func() error) error {
	if q == nil || !q.alive {
		return gone("use the monitor")
	}
	wait := q.between(100*time.Microsecond, time.Millisecond)
	if q.hung() {
		if q.hangs-q.now > commandWithin {
			q.sleep(commandWithin)
			return &fleet.Error{Code: fleet.Deadline, Op: "use the monitor", Cause: "QEMU does not answer"}
		}
		wait += q.hangs - q.now
	}
	q.sleep(wait)
	if !q.alive {
		return gone("use the monitor")
	}
	return do()
}

func gone(op string) error {
	return &fleet.Error{Code: fleet.Failed, Op: op, Cause: "its instance has ended"}
}

func (q *emulator) ended() bool { return q == nil || !q.alive }

// resume is cont.
func (q *emulator) resume() error {
	return q.command(func() error {
		switch {
		case q.runs:
			return nil
		case q.in == waiting || q.in == failed:
			return &fleet.Error{Code: fleet.Failed, Op: "run", Cause: "it has not loaded its state"}
		case q.out == preSwitchover || q.out == device:
			return &fleet.Error{Code: fleet.Failed, Op: "run", Cause: "the migration is not finalized yet"}
		}
		if err := q.lock(); err != nil {
			return err
		}
		q.in, q.runs = idle, true
		q.account()
		return nil
	})
}

// pause is QEMU's stop: the guest stands still, and what it dirtied is sent as the last.
func (q *emulator) pause() error {
	return q.command(func() error {
		q.runs = false
		q.account()
		if q.stream != nil && q.out == active && q.stream.last == 0 {
			q.stream.finishPages()
		}
		return nil
	})
}

// halt is the end of a copy that nobody holds: QEMU stops the guest itself.
func (q *emulator) halt() {
	q.runs, q.byItself = false, true
	q.account()
	q.stream.finishPages()
	q.say(news{kind: guestHalted})
}

// runOn is what follows when that copy fails, whatever the gate is. The guest runs
// as soon as QEMU can have the image.
func (q *emulator) runOn() {
	q.byItself = false
	q.at(nil, max(0, q.hangs-q.now)+q.between(time.Millisecond, 10*time.Millisecond), func() {
		if q.alive && q.out == failed && !q.runs && q.lock() == nil {
			q.runs = true
			q.account()
		}
	})
}

// proceed is migrate-continue.
func (q *emulator) proceed() error {
	return q.command(func() error {
		if q.out == preSwitchover {
			q.out = device
			q.unlock()
			q.stream.sendDevices()
		}
		return nil
	})
}

// cancelCopy is migrate_cancel. What was sent last may have arrived.
func (q *emulator) cancelCopy() error {
	return q.command(func() error {
		if q.stream != nil {
			q.stream.breakOff()
		}
		return nil
	})
}

// kill is its agent's SIGKILL, which a stopped process obeys too.
func (q *emulator) kill() {
	if q.ended() {
		return
	}
	q.sleep(q.between(time.Millisecond, 5*time.Millisecond))
	could := q.m.mayRun()
	q.die()
	wanted := q.m.vm.stored.Phase == fleet.VMStopping
	if v := q.m.vm; could && !wanted && v.down() && !v.hurt() {
		q.guests.Ended(q.identity())
	}
}
