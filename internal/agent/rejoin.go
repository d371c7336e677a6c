package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit.dev/godwit/internal/qemu"
	"godwit.dev/godwit/internal/qmp"
)

// rejoinEvery is the pause between tries to take an instance over whose monitor
// was lost.
const rejoinEvery = 2 * time.Second

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
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		err := m.inTurn(ctx, func() error { return m.letGoOf(ctx, lost, reason) })
		if err == nil && m.held() == nil {
			m.tellEnd(ctx, lost.ExitCause()) // meanwhile
		}
		if err == nil || errors.Is(err, errGone) {
			return
		}
		m.agent.log.Warn("an instance is not taken over yet", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
		pause.Reset(rejoinEvery)
	}
}

// letGoOf closes what is held of an instance without a monitor, once, and tries to
// take it over. The worker calls it.
func (m *machine) letGoOf(ctx context.Context, lost *qemu.Instance, reason error) error {
	if m.instance != lost || m.isEnding() { // it was adopted just now; its process is enough for its end
		return nil
	}
	m.awaitCopy(ctx) // which finds out by itself, and says so
	if err := m.letGo(); err != nil {
		m.agent.log.Warn("an instance was not let go of in full", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
	}
	m.mu.Lock()
	m.unadopted = fmt.Errorf("its monitor is lost: %w", reason)
	m.instance, m.ports = nil, nil
	m.mu.Unlock()
	return m.adoptAgain()
}
