package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/lab"
	"godwit.dev/godwit/internal/lab/fleetlab"
)

// strikeWithin bounds how long the fault may take to be done.
const strikeWithin = 5 * time.Second

// nearlyAll is what is left of a copy when the hand-over is less than a second
// away.
const nearlyAll = slowly / 2

// targetRunning is the event of the story that ends the time after the commit.
const targetRunning = "target-running"

// sourceRetired is the event that says that the source was ended.
const sourceRetired = "source-retired"

// stage watches one migration, holds it in the state that is meant and lets
// the fault come there. Only see and finish are called from outside.
type stage struct {
	fleet *fleetlab.Fleet
	plane plane
	cell  cell

	agent  *fleetlab.Process // the target's, held by a signal
	answer func() error      // heals the cut by which what a server says to a host is held

	struck     bool
	begun, met time.Time // the fault began, and was done
	mended     time.Time // it is over; to be read after finish
	mending    sync.WaitGroup
	mu         sync.Mutex
	err        error
}

// see is called with every change of the migration's record.
func (s *stage) see(ctx context.Context, m *godwitv1.Migration) {
	if s.struck || s.failed() {
		return
	}
	s.hold(m)
	if !s.failed() && s.reached(m) {
		s.strike(ctx)
	}
}

// hold keeps a state from passing before it has been seen.
func (s *stage) hold(m *godwitv1.Migration) {
	switch {
	case s.cell.State == beforeCommit && s.agent == nil && nearlyCopied(m):
		agent := s.fleet.Agent(targetHost)
		if err := agent.Pause(); err != nil {
			s.fail(err)
			return
		}
		s.agent = agent
	case s.answer != nil || m.GetState() != "switching":
	case s.cell.State == afterCommit:
		s.silence(targetHost)
	case s.cell.needsSource():
		s.silence(sourceHost)
	}
}

// silence holds what the servers say to a host.
func (s *stage) silence(host string) {
	var err error
	s.answer, err = cutAll(s.fleet, between(controlHosts(0, s.plane.servers), []string{host}, lab.AllTraffic))
	s.fail(err)
}

func copies(m *godwitv1.Migration) bool {
	return m.GetState() == "copying" && m.GetProgress().GetSentBytes() > 0
}

// nearlyCopied: the hand-over is not far, so that who is held until then is not
// taken for dead.
func nearlyCopied(m *godwitv1.Migration) bool {
	return copies(m) && (m.GetProgress().GetPass() > 1 || m.GetProgress().GetRemainingBytes() < nearlyAll)
}

func happened(m *godwitv1.Migration, event string) bool {
	return slices.ContainsFunc(m.GetStory(), func(e *godwitv1.StoryEntry) bool { return e.GetEvent() == event })
}

// reached tells whether a record is in the state that is meant.
func (s *stage) reached(m *godwitv1.Migration) bool {
	switch s.cell.State {
	case preparing:
		return m.GetState() == "preparing"
	case copying:
		return copies(m)
	case beforeCommit:
		return s.agent != nil && m.GetState() == "switching"
	case afterCommit:
		return m.GetState() == "settling" && !happened(m, targetRunning)
	}
	held := s.answer != nil || !s.cell.needsSource()
	return held && m.GetState() == "settling" && happened(m, targetRunning)
}

// strike lets the fault come, and go when its time is over.
func (s *stage) strike(ctx context.Context) {
	s.struck = true
	bounded, cancel := context.WithTimeout(ctx, strikeWithin)
	defer cancel()
	s.begun = time.Now()
	done, err := inject(bounded, s.fleet, s.plane, s.cell, s.agent)
	s.met = time.Now()
	if !s.cell.needsSource() || !errors.Is(err, context.DeadlineExceeded) { // it is gone, which the story says
		s.fail(err)
	}
	if s.cell.Victim == targetAgent && (s.cell.Fault == restart || s.cell.Fault == sigstop) {
		s.agent = nil // it is new, or its stop is the fault's now
	}
	s.release()
	if done.end == nil {
		return
	}
	s.mending.Go(func() {
		over := time.NewTimer(done.lasts)
		defer over.Stop()
		select {
		case <-over.C:
		case <-ctx.Done():
		}
		s.fail(done.end())
		s.mended = time.Now()
	})
}

// release lets go of what was held.
func (s *stage) release() {
	if s.agent != nil {
		s.fail(s.agent.Continue())
		s.agent = nil
	}
	if s.answer != nil {
		s.fail(s.answer())
		s.answer = nil
	}
}

// finish is called when the migration has ended. It returns when the fault is
// over, with what has gone wrong with it.
func (s *stage) finish() error {
	s.release()
	s.mending.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *stage) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
}

func (s *stage) failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

// how says how the state was hit.
func (c cell) how() string {
	switch {
	case c.needsSource():
		return "as soon as the record said that the target runs, what the servers send to the source's host being cut since the source had stopped"
	case c.State == beforeCommit:
		return "as soon as the record was in switching, the target's agent being stopped by a signal since the end of the copy"
	case c.State == afterCommit:
		return "as soon as the record was in settling, what the server sends to the target's host being cut since the source had stopped"
	case c.State == settling:
		return "as soon as the record said that the target runs"
	}
	return "as soon as the record was in " + string(c.State)
}

// missed says why a fault did not fall into the state that is meant, by the
// migration's own story, or nothing.
func (s *stage) missed(m *godwitv1.Migration) string {
	if !s.struck {
		return fmt.Sprintf("the state was never seen; the migration is %s: %s", m.GetState(), m.GetCause())
	}
	want := map[state]string{beforeCommit: "switching", afterCommit: "settling"}[s.cell.State]
	if want == "" {
		want = string(s.cell.State)
	}
	for _, at := range []time.Time{s.begun, s.met} {
		if is := stateAt(m, at); is != want {
			return fmt.Sprintf("the record was in %q while the fault came, not in %q", is, want)
		}
	}
	if s.cell.needsSource() && retiredBefore(m, s.met) {
		return "the source was ended before the fault came"
	}
	if ran := ranAt(m); s.cell.State == afterCommit && !ran.IsZero() && ran.Before(s.met) {
		return "the target ran before the fault came"
	}
	return ""
}

// stateAt gives the state of a migration at a moment.
func stateAt(m *godwitv1.Migration, at time.Time) (is string) {
	for _, entry := range m.GetStory() {
		if entry.GetAt().AsTime().After(at) {
			break
		}
		is = entry.GetState()
	}
	return is
}

// retiredBefore tells whether the source was ended by a moment.
func retiredBefore(m *godwitv1.Migration, at time.Time) bool {
	return slices.ContainsFunc(m.GetStory(), func(e *godwitv1.StoryEntry) bool {
		return e.GetEvent() == sourceRetired && e.GetAt().AsTime().Before(at)
	})
}

// ranAt is when the target executed its first instruction.
func ranAt(m *godwitv1.Migration) time.Time {
	ms := m.GetOutcome().GetTotalMs()
	if ms == 0 {
		return time.Time{}
	}
	return m.GetCreated().AsTime().Add(time.Duration(ms * float64(time.Millisecond)))
}
