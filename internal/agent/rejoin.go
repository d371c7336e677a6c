package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/qmp"
)

// The pauses between tries to take an instance over double from the first to the
// longest.
const (
	rejoinMin = 2 * time.Second
	rejoinMax = 30 * time.Second
)

// monitorLost tells whether an instance whose monitor has ended for this reason
// runs on: it broke the protocol, or did not read for too long.
func monitorLost(ctx context.Context, instance *qemu.Instance, reason error) bool {
	switch {
	case ctx.Err() != nil:
		return false
	case errors.Is(reason, qmp.ErrProtocol):
		return !instance.Ended()
	}
	return errors.Is(reason, qmp.ErrGone) && !endedWith(instance, reason)
}

// rejoin takes an instance over anew, as the next agent would, for as long as
// that takes. Until then nobody is told that it is gone, and nothing is asked of
// it.
func (m *machine) rejoin(ctx context.Context, lost *qemu.Instance, reason error) {
	m.agent.log.Error("the monitor of an instance is lost; the instance runs on, and is taken over anew",
		"vm", m.key.vm, "epoch", m.key.epoch, "error", reason)
	m.retry(ctx, 0, func() error { return m.letGoOf(ctx, lost, reason) }, lost.ExitCause)
}

// adoptLater takes over what an agent that has just started could not.
func (m *machine) adoptLater(ctx context.Context) {
	m.retry(ctx, rejoinMin, func() error { return nil }, func() string { return "it ended before the agent could reach it" })
}

// retry has the worker take the instance over, by and by. If it has ended meanwhile,
// that is told.
func (m *machine) retry(ctx context.Context, first time.Duration, task func() error, cause func() string) {
	pause := time.NewTimer(first)
	defer pause.Stop()
	for next := rejoinMin; ; next = min(2*next, rejoinMax) {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		err := m.inTurn(ctx, task)
		if err == nil && m.held() == nil {
			m.tellEnd(ctx, cause())
		}
		if err == nil || errors.Is(err, errGone) {
			return
		}
		m.agent.log.Warn("an instance is not taken over yet", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
		pause.Reset(next)
	}
}

// letGoOf closes what is held of an instance without a monitor, once, and tries to
// take it over. The worker calls it.
func (m *machine) letGoOf(ctx context.Context, lost *qemu.Instance, reason error) error {
	if m.instance != lost || m.isEnding() { // it was adopted just now; its process is enough for its end
		return nil
	}
	m.awaitCopy(ctx) // which finds out by itself, and says so
	m.loseHold(fmt.Errorf("its monitor is lost: %w", reason))
	return m.adoptAgain()
}

// loseHold makes the instance one that may run, and has to be taken over.
func (m *machine) loseHold(why error) {
	if err := m.letGo(); err != nil {
		m.agent.log.Warn("an instance was not let go of in full", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unadopted = why
	m.instance, m.ports = nil, nil
}
