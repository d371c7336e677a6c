package fleetlab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
)

// Pause holds the process where it is, as a host does that hangs, until
// Continue: an agent's monitor, too, which so does not take it for hung. When it
// returns, nothing of it does anything any more.
func (p *Process) Pause() error {
	group, err := p.signal(unix.SIGSTOP)
	if err != nil {
		return err
	}
	// The signal takes effect when the threads have next been scheduled.
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		members, err := membersOf(group)
		if err != nil || len(members) == 0 {
			return cmp.Or(err, fmt.Errorf("pause %s: it has ended", p.name))
		}
		if !slices.ContainsFunc(members, func(one member) bool { return one.state != 'T' }) {
			return nil
		}
		<-ticker.C
	}
}

// lookEvery is how often a process is looked at for what it tells nobody.
const lookEvery = time.Millisecond

// Continue lets a paused process go on.
func (p *Process) Continue() error {
	_, err := p.signal(unix.SIGCONT)
	return err
}

func (p *Process) signal(signal unix.Signal) (group int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running == nil {
		return 0, fmt.Errorf("send %s to %s: it does not run", signal, p.name)
	}
	if err := unix.Kill(-p.running.Process.Pid, signal); err != nil {
		return 0, fmt.Errorf("send %s to %s: %w", signal, p.name, err)
	}
	return p.running.Process.Pid, nil
}

// Events of a hand-over, as a migration's story calls them.
const (
	SourceStopped = "source-stopped"  // QEMU has still to send the rest
	AllSent       = "switch-measured" // the target's QEMU has everything
)

// CancelSwitch starts a migration, cancels it in its hand-over as soon as an
// event is in its story, and gives it in its final state.
//
// The cancel is certain to come before the commit: the target's agent is paused
// from the copy until the cancel is decided, so that it cannot ask for it. The
// error says that it was refused, or that the migration ended before.
func (f *Fleet) CancelSwitch(ctx context.Context, request *godwitv1.CreateMigrationRequest, event string) (*godwitv1.Migration, error) {
	c := canceller{fleet: f, event: event}
	m, err := f.Migrate(ctx, request, func(m *godwitv1.Migration) { c.see(ctx, m) })
	c.release() // if it ended, or ctx did, before the event
	if err = errors.Join(err, c.err); err == nil && !c.asked {
		err = fmt.Errorf("cancel migration %s at %s: it is %s before that: %s", m.GetId(), event, m.GetState(), m.GetCause())
	}
	return m, err
}

// canceller cancels one migration.
type canceller struct {
	fleet *Fleet
	event string
	held  *Process // the target's agent
	asked bool
	err   error
}

func (c *canceller) see(ctx context.Context, m *godwitv1.Migration) {
	switch {
	case c.asked || c.err != nil:
	case c.held == nil && m.GetState() == "copying":
		c.held = c.fleet.Agent(m.GetTarget())
		c.err = c.held.Pause()
	case c.held != nil && slices.ContainsFunc(m.GetStory(), func(e *godwitv1.StoryEntry) bool { return e.GetEvent() == c.event }):
		c.asked = true
		_, c.err = c.fleet.API.Migration.Cancel(ctx, &godwitv1.CancelMigrationRequest{Id: m.GetId(), Reason: "a test of the cancel"})
		c.release()
	}
}

func (c *canceller) release() {
	if c.held != nil {
		c.err = errors.Join(c.err, c.held.Continue())
		c.held = nil
	}
}
