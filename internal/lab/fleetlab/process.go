package fleetlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/lab"
)

// logTail is how much of a log is quoted when its process has died, in lines.
const logTail = 5

// Process is the server, its etcd or an agent. It can be started again after its end.
type Process struct {
	name string
	home *lab.Namespace
	log  string // path
	env  []string
	args []string // the program's path is the first

	mu      sync.Mutex
	running *lab.Cmd
	exited  chan struct{} // of running
}

// LogPath is the file that every run of the process writes to.
func (p *Process) LogPath() string { return p.log }

// Start starts it. It lives until it is ended or the fleet is closed.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running != nil {
		return fmt.Errorf("start %s: it runs already", p.name)
	}
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	// A file, not a pipe: after Keep nobody would read it.
	cmd := p.home.Command(context.Background(), p.args[0], p.args[1:]...)
	cmd.Env = append(os.Environ(), p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	exited := make(chan struct{})
	p.running, p.exited = cmd, exited
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		p.mu.Lock()
		p.running = nil
		p.mu.Unlock()
		close(exited)
	}()
	return nil
}

// Kill ends it at once, as a crash would, with all of it, and waits until it is
// gone.
func (p *Process) Kill() error {
	group, err := p.end(func(pid int) error { return syscall.Kill(-pid, syscall.SIGKILL) })
	if err != nil {
		return err
	}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		members, err := membersOf(group)
		if err != nil || len(members) == 0 {
			return err
		}
		<-ticker.C
	}
}

// Stop asks it to end and waits until it has.
func (p *Process) Stop() error {
	_, err := p.end(func(pid int) error { return syscall.Kill(pid, syscall.SIGTERM) })
	return err
}

func (p *Process) end(signal func(pid int) error) (pid int, err error) {
	p.mu.Lock()
	cmd, exited := p.running, p.exited
	p.mu.Unlock()
	if cmd == nil {
		return 0, fmt.Errorf("end %s: it does not run", p.name)
	}
	if err := signal(cmd.Process.Pid); err != nil && !errors.Is(err, syscall.ESRCH) {
		return 0, fmt.Errorf("end %s: %w", p.name, err)
	}
	<-exited
	return cmd.Process.Pid, nil
}

// Exited is closed when the present run has ended; it is closed, too, when
// there is none.
func (p *Process) Exited() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exited == nil {
		none := make(chan struct{})
		close(none)
		return none
	}
	return p.exited
}

// PID is that of the present run, 0 without one.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return 0
	}
	return p.running.Process.Pid
}

// Log is what it has written so far.
func (p *Process) Log() (string, error) {
	text, err := os.ReadFile(p.log)
	return string(text), err
}

// died says that the process has ended on its own, with the end of its log.
func (p *Process) died() error {
	text, _ := p.Log() // without it the error still says where to look
	lines := strings.Split(strings.TrimSpace(text), "\n")
	tail := lines[max(0, len(lines)-logTail):]
	return &fleet.Error{
		Code: fleet.Failed, Op: "run", Subject: p.name,
		Cause: "it has ended: " + strings.Join(tail, " / "), Hint: "its log was " + filepath.Base(p.log),
	}
}

// OwnMounts goes before a program's command line and gives it mounts that nobody else
// sees, by a shell command that has that line as its arguments: $4 is the folder of a
// server, ${10} that of an agent.
func OwnMounts(mount string) []string {
	return []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", mount + ` && exec "$@"`, "sh"}
}
