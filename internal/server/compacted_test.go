package server

import (
	"fmt"
	"testing"

	godwitv1 "godwit.dev/godwit/api/godwit/v1"
	"godwit.dev/godwit/internal/fleet"
	"godwit.dev/godwit/internal/migration"
	"godwit.dev/godwit/internal/store"
)

// TestCompactedUnderTheWatch holds up what the leader hears of the store, until
// another server has cancelled a migration, a VM is gone, and the history that
// tells of it is compacted. The leader reads everything anew, and does what
// follows from it.
func TestCompactedUnderTheWatch(t *testing.T) {
	t.Parallel()
	leader, others := newReplicas(t, 2)
	h1, h2 := leader.join("h1", roomy), leader.join("h2", roomy)
	leader.create(&godwitv1.CreateVMRequest{Name: "gone", Spec: smallSpec(), Stopped: true})
	leader.awaitVM("gone", "known", func(*godwitv1.VM) bool { return true })
	fl := leader.fly(h1, h2, "web1", testPolicy())
	fl.to(inCopy)

	leader.server.mirror.mu.RLock()
	_, err := leader.store.Commit(t.Context(), nil, leader.server.tables.hosts.Put("held-up", fleet.Host{Name: "held-up"}))
	for i := 0; i < 30 && err == nil; i++ { // more than a watch keeps for its reader
		var ops []store.Op
		for j := range store.MaxOps {
			ops = append(ops, store.Put(fmt.Sprintf("ballast/%d", j), nil))
		}
		_, err = leader.store.Commit(t.Context(), nil, ops...)
	}
	vms := leader.server.tables.vms
	if err == nil {
		_, err = leader.store.Commit(t.Context(), nil, vms.Delete("gone"))
	}
	if err == nil {
		err = others[0].follow(nil, nil, "web1", fl.id).cancel()
	}
	if err == nil {
		err = leader.store.Compact(t.Context())
	}
	leader.server.mirror.mu.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	fl.answer(h1, "resume_source")
	fl.answer(h2, "release_target")
	fl.await(migration.Aborted)
	if _, known := leader.server.mirror.VM("gone"); known {
		t.Error("a VM that was deleted meanwhile is still known")
	}
}
