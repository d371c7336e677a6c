package qemu

import (
	"encoding/json"
	"sync/atomic"
	"testing"

	"godwit.dev/godwit/internal/qmp"
	"godwit.dev/godwit/internal/qmp/qmptest"
)

// QEMU says that a migration has failed before it lets go of the guest.
func TestCancelWaitsForTheGuest(t *testing.T) {
	server := qmptest.New(t)
	client, err := qmp.Dial(t.Context(), server.Path())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	var asked atomic.Int32
	server.Reply("migrate_cancel", struct{}{})
	server.Reply("query-migrate", map[string]any{"status": "failed"})
	server.Handle("query-status", func(json.RawMessage) (any, error) {
		status := "finish-migrate"
		if asked.Add(1) > 2 {
			status = "paused"
		}
		return map[string]any{"status": status, "running": false, "singlestep": false}, nil
	})
	if err := (&Instance{monitor: client}).CancelMigration(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("it has asked %d times", n)
	}
}
