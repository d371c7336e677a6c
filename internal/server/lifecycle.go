package server

import (
	"log/slog"

	"godwit.dev/godwit/internal/lifecycle"
)

func newLifecycle(t tables, m *mirror, h *hub, log *slog.Logger) *lifecycle.Lifecycle {
	return lifecycle.New(lifecycle.Config{Tables: t.lifecycle(), Records: m, Hosts: h, Log: log})
}

// lifecycle are those that the life of a VM reads and changes.
func (t tables) lifecycle() lifecycle.Tables {
	return lifecycle.Tables{
		Store: t.store, VMs: t.vms, Stops: t.stops, Ledgers: t.ledgers, Networks: t.networks, Migrations: t.migrations,
	}
}
