// Package supervise keeps a program running: a monitor starts it as a process
// of its own, and starts it again when it is killed, crashes or hangs.
//
// The two are one unit for everybody else. The monitor passes an interrupt on
// and ends as the program does; if the monitor is killed, the kernel kills the
// program, for whatever started the monitor to start both again.
//
// The program gives signs of life on a pipe. What is counted are ticks of the
// monitor without one, not time: a host that was suspended, or hung as a whole,
// has missed none.
//
// The monitor also keeps descriptors for the program, by name ([Keeper]): what must
// stay open does so while the program is killed and started again.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// beatEvery is the interval of the program's signs of life.
	beatEvery = 200 * time.Millisecond
	// tickEvery is the interval at which the monitor looks for them.
	tickEvery = 250 * time.Millisecond
	// patience is how many ticks without a sign of life make a program hung: a
	// busy host is no reason, and a guest may be waiting for it.
	patience = 7
	// birth is the same for one that has not given any yet.
	birth = 40

	// A program that ends again and again is started after a pause that doubles.
	pauseMin, pauseMax = 50 * time.Millisecond, 5 * time.Second
	// settled is the life after which an end is a first one again.
	settled = 30 * time.Second
)

// What the program writes to the pipe.
const (
	beat  = 'b'
	ready = 'r'
)

// The descriptors in the program, the first beside the standard ones
// (os/exec.Cmd.ExtraFiles), and the variable that says so.
const (
	pipeFD = 3 // signs of life
	keepFD = 4 // what the monitor keeps
	marker = "GODWIT_SUPERVISED"
	keeps  = "2" // the marker's value; a monitor of an older program keeps nothing, and says 1
)

// Config says what is kept running.
type Config struct {
	Name    string           // of the program, for the log
	Command func() *exec.Cmd // gives the program's command anew
	Log     *slog.Logger
}

// Run keeps the program running until ctx ends, which asks it to end with
// SIGTERM, or until it ends well by itself. A program that exits before it was
// ever Ready cannot do what it was asked to and is not started again: the error
// is an *exec.ExitError.
func Run(ctx context.Context, config Config) error {
	// The kernel kills the program when the thread ends that has started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause, worked, kept := pauseMin, false, kept{}
	defer kept.dropAll()
	for {
		begun := time.Now()
		p, err := start(config.Command(), kept)
		if err == nil {
			err = p.follow(ctx)
			worked = worked || p.ready.Load()
		}
		if err == nil || !worked && !killed(err) || ctx.Err() != nil {
			return err
		}
		if time.Since(begun) > settled {
			pause = pauseMin
		}
		config.Log.Error(config.Name+" has ended and is started again", "cause", err, "in", pause)
		if !rest(ctx, pause) {
			return nil
		}
		pause = min(2*pause, pauseMax)
	}
}

// errHung is the end of a program that was killed for its silence.
var errHung = errors.New("it gave no sign of life any more, and was killed")

// killed tells of a program that has not ended by itself.
func killed(err error) bool {
	ended, ok := errors.AsType[*exec.ExitError](err)
	return ok && !ended.Exited() || errors.Is(err, errHung)
}

// rest is false if ctx ends before the pause.
func rest(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// program is one life of the program.
type program struct {
	cmd   *exec.Cmd
	beats atomic.Int64
	ready atomic.Bool
	ended chan error
}

func start(cmd *exec.Cmd, kept kept) (*program, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	asks, asked, err := socketPair()
	if err != nil {
		return nil, errors.Join(err, r.Close(), w.Close())
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, marker+"="+keeps)
	cmd.ExtraFiles = []*os.File{w, asked}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, r.Close(), w.Close(), asks.Close(), asked.Close())
	}
	_ = errors.Join(w.Close(), asked.Close()) // the program has them
	p := &program{cmd: cmd, ended: make(chan error, 1)}
	var heard sync.WaitGroup
	heard.Go(func() { p.hear(r) })
	heard.Go(func() { kept.serve(asks) })
	go func() {
		err := cmd.Wait()
		_ = asks.Close() // what the program has started may have its end
		heard.Wait()
		p.ended <- err
	}()
	return p, nil
}

// hear takes the program's signs until its end.
func (p *program) hear(r *os.File) {
	defer r.Close()
	var signs [64]byte
	for {
		n, err := r.Read(signs[:])
		for _, sign := range signs[:n] {
			p.beats.Add(1)
			if sign == ready {
				p.ready.Store(true)
			}
		}
		if err != nil {
			return
		}
	}
}

// follow waits for the program's end, and brings it about if it hangs.
func (p *program) follow(ctx context.Context) error {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	asked := ctx.Done()
	silence := silence{limit: birth}
	hung := false
	for {
		select {
		case err := <-p.ended:
			if hung {
				return errHung
			}
			return err
		case <-asked:
			asked = nil
			p.signal(syscall.SIGTERM)
		case <-ticker.C:
			if silence.tick(p.beats.Load()) {
				hung = true
				p.signal(syscall.SIGKILL)
			}
		}
	}
}

// silence counts ticks without a sign of life.
type silence struct {
	heard int64 // signs so far
	ticks int
	limit int
}

// tick reports whether the silence has lasted too long.
func (s *silence) tick(heard int64) bool {
	s.ticks++
	if heard != s.heard {
		*s = silence{heard: heard, limit: patience}
	}
	return s.ticks >= s.limit
}

// signal does nothing to a program that has ended.
func (p *program) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Link is the program's side.
type Link struct {
	pipe   io.Writer
	keeper *Keeper
}

// Join gives the link to the monitor that has started this process, and begins
// to give signs of life; ok is false without a monitor. It is called once, and
// before the process starts another one.
func Join() (link *Link, ok bool, err error) {
	said := os.Getenv(marker)
	if said == "" {
		return nil, false, nil
	}
	if err := os.Unsetenv(marker); err != nil {
		return nil, false, err
	}
	syscall.CloseOnExec(pipeFD)
	pipe := os.NewFile(pipeFD, "monitor")
	if info, err := pipe.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return nil, false, fmt.Errorf("%s is set, but descriptor %d is no pipe to a monitor: unset it", marker, pipeFD)
	}
	link = &Link{pipe: pipe}
	if said == keeps {
		socket := os.NewFile(keepFD, "monitor")
		defer socket.Close() // conn has a copy
		conn, err := unixConn(socket)
		if err != nil {
			return nil, false, fmt.Errorf("reach the monitor by descriptor %d: %w", keepFD, err)
		}
		link.keeper = &Keeper{conn: conn, within: answerWithin}
	}
	go link.live()
	return link, true, nil
}

// Keeper keeps descriptors beyond the program's end; nil if the monitor, of an older
// program, keeps none.
func (l *Link) Keeper() *Keeper { return l.keeper }

// live gives signs of life until the monitor is gone, and the process with it.
func (l *Link) live() {
	ticker := time.NewTicker(beatEvery)
	defer ticker.Stop()
	for l.say(beat) == nil {
		<-ticker.C
	}
}

// Ready says that the program has come up: from now on it is worth starting
// again.
func (l *Link) Ready() error { return l.say(ready) }

func (l *Link) say(sign byte) error {
	_, err := l.pipe.Write([]byte{sign})
	return err
}
