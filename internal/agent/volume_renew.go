package agent

import (
	"context"
	"time"

	"godwit.dev/godwit/internal/pledge"
)

// renewVolumesEvery is how often it is looked whether instances have volumes open
// with a certificate that the host has renewed since.
const renewVolumesEvery = 10 * time.Minute

// renewVolumes has instances open their volumes with the host's present certificate.
// QEMU reads it when it opens a volume; with one that has expired it could not
// connect again to a volume server that was restarted.
func (a *Agent) renewVolumes(ctx context.Context) {
	ticker := time.NewTicker(renewVolumesEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		for _, m := range a.all() {
			if !m.volumesAged() {
				continue
			}
			if err := m.inTurn(ctx, func() error { return m.reopenVolumes(ctx) }); err != nil && ctx.Err() == nil {
				a.log.Warn("an instance has its volumes open with an older certificate", "vm", m.key.vm, "epoch", m.key.epoch, "error", err)
			}
		}
	}
}

// volumesAged: the host has a newer certificate than that with which the instance
// has opened its volumes.
func (m *machine) volumesAged() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.record.Volumes != nil && m.agent.config.Keeper.NotAfter().After(m.record.Volumes.Until)
}

// reopenVolumes, of the worker, opens the volumes anew, if the instance is its VM's
// only one: during a migration that can wait.
func (m *machine) reopenVolumes(ctx context.Context) error {
	if m.record.Role != pledge.Alone || m.instance == nil || m.instance.Ended() || m.isEnding() || !m.volumesAged() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	until := m.agent.config.Keeper.NotAfter()
	if err := m.openVolumes(ctx, m.key.epoch); err != nil {
		return err
	}
	m.agent.log.Info("volumes are open with the renewed certificate", "vm", m.key.vm, "epoch", m.key.epoch)
	volumes := *m.record.Volumes
	volumes.Until = until
	next := m.record
	next.Volumes = &volumes
	return m.note(next)
}
